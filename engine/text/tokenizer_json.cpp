#include "engine/text/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "engine/io/json_object.h"
#include "engine/io/quote.h"
#include "engine/text/tokenizer_json_steps.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

using Json = nlohmann::json;

constexpr JsonLimits kLimits = {.max_bytes = 256 << 20, .max_depth = 32, .max_values = 8 << 20};
constexpr IntRange kIdRange = {.min = 0, .max = (1 << 24) - 1};

void expect_empty(const JsonObject& object, std::string_view key) {
  const std::string value = object.string_or(key, "");
  if (!value.empty()) refuse(object, key, "none", value);
}

int32_t find_token(const Vocabulary& v, const std::string& text) {
  const auto it = std::ranges::find(v.tokens, text);
  return it == v.tokens.end() ? -1 : static_cast<int32_t>(it - v.tokens.begin());
}

// The ids of a template's special token: those it lists, or the token of that text.
std::vector<int32_t> template_ids(const JsonObject& processor,
                                  const std::string& text,
                                  const Vocabulary& v) {
  const IntRange range = {.min = 0, .max = std::ssize(v.tokens) - 1};
  if (processor.has("special_tokens")) {
    const JsonObject listed = processor.object("special_tokens");
    if (listed.has(text)) {
      const auto ids = listed.object(text).integers("ids", range);
      return {ids.begin(), ids.end()};
    }
  }
  const int32_t found = find_token(v, text);
  if (found < 0) refuse(processor, "single", "tokens of the vocabulary", text);
  return {found};
}

// What comes around a text. Of several processors, the later ones wrap the earlier.
void read_post_processor(const JsonObject& processor, Vocabulary& v) {
  const std::string type = processor.string("type");
  std::vector<int32_t> before, after;
  if (type == "Sequence") {
    for (const JsonObject& item : processor.objects("processors")) read_post_processor(item, v);
  } else if (type == "TemplateProcessing") {
    bool passed = false;
    for (const JsonObject& item : processor.objects("single")) {
      if (item.has("Sequence")) {
        if (std::exchange(passed, true)) refuse(processor, "single", "one Sequence", "two");
        continue;
      }
      const auto ids = template_ids(processor, item.object("SpecialToken").string("id"), v);
      auto& side = passed ? after : before;
      side.insert(side.end(), ids.begin(), ids.end());
    }
    if (!passed) refuse(processor, "single", "one Sequence", "none");
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    const auto id_of = [&](const char* key) {
      const Json& pair = processor.value()[key];
      if (!pair.is_array() || pair.size() != 2 || !pair[1].is_number_integer() ||
          pair[1].get<int64_t>() < 0 || pair[1].get<int64_t>() >= std::ssize(v.tokens)) {
        refuse(processor, key, "[text, id of a token]", pair.dump().substr(0, 80));
      }
      return static_cast<int32_t>(pair[1].get<int64_t>());
    };
    for (const char* key : {"cls", "sep"}) {
      if (!processor.has(key)) refuse(processor, key, "[text, id of a token]", "missing");
    }
    before = {id_of("cls")};
    after = {id_of("sep")};
  } else if (type != "ByteLevel") {  // that one changes offsets only
    refuse(processor,
           "type",
           "TemplateProcessing, RobertaProcessing, BertProcessing, ByteLevel or a Sequence of them",
           type);
  }
  v.before.insert(v.before.begin(), before.begin(), before.end());
  v.after.insert(v.after.end(), after.begin(), after.end());
}

// The one token around a text is its bos or eos, whatever the configuration says.
void name_ends(Vocabulary& v) {
  const auto has = [](const std::vector<int32_t>& ids, int32_t id) {
    return std::ranges::find(ids, id) != ids.end();
  };
  v.add_bos = !v.before.empty();
  v.add_eos = !v.after.empty();
  if (v.add_bos && !has(v.before, v.bos)) v.bos = v.before.front();
  if (v.add_eos && !has(v.after, v.eos)) v.eos = v.after.back();
}

void place(Vocabulary& v, int64_t id, std::string text, TokenKind kind) {
  v.tokens[id] = std::move(text);
  v.kinds[id] = kind;
}

// Text, id and score of every entry of a model: {text: id}, or [[text, score]] in order.
template <typename Visit>
void each_entry(const JsonObject& model, const Visit& visit) {
  if (!model.has("vocab")) refuse(model, "vocab", "the tokens", "missing");
  const Json& vocab = model.value()["vocab"];
  if (vocab.is_object()) {
    for (const auto& [text, id] : vocab.items()) {
      if (!id.is_number_integer() || id.template get<int64_t>() < 0) {
        throw LoadError(model.name() + ": id of token " + quote(text) + " is no whole number");
      }
      visit(text, id.template get<int64_t>(), 0.0);
    }
    return;
  }
  if (!vocab.is_array()) refuse(model, "vocab", "an object or a list", vocab.type_name());
  int64_t next = 0;
  for (const Json& entry : vocab) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      throw LoadError(model.name() + ": \"vocab\"[" + std::to_string(next) +
                      "] is not [text, score]");
    }
    visit(entry[0].get<std::string>(), next++, entry[1].get<double>());
  }
}

void read_tokens(const JsonObject& root, const JsonObject& model, Vocabulary& v) {
  std::vector<JsonObject> added;
  if (root.has("added_tokens")) added = root.objects("added_tokens");
  int64_t num_entries = std::ssize(added), size = 0;
  each_entry(model, [&](const std::string&, int64_t id, double) {
    ++num_entries;
    size = std::max(size, id + 1);
  });
  // Ids may have holes, but not so many that a small file asks for a large table.
  const IntRange range = {.min = 0, .max = std::min(kIdRange.max, 2 * num_entries + 1024)};
  if (size > range.max + 1) {
    throw LoadError(model.name() + ": the id of a token is " + std::to_string(size - 1) +
                    ", expected at most " + std::to_string(range.max));
  }
  for (const JsonObject& token : added) size = std::max(size, token.integer("id", range) + 1);

  v.tokens.resize(size);
  v.kinds.assign(size, TokenKind::kUnused);
  if (v.model == "unigram") v.scores.assign(size, 0);
  each_entry(model, [&](const std::string& text, int64_t id, double score) {
    place(v, id, text, TokenKind::kNormal);
    if (!v.scores.empty()) v.scores[id] = score;
  });
  for (const JsonObject& token : added) {
    const auto id = static_cast<int32_t>(token.integer("id", range));
    const bool special = token.boolean_or("special", false);
    if (v.kinds[id] == TokenKind::kUnused) v.beside_model.insert(id);
    place(v, id, token.string("content"), special ? TokenKind::kControl : TokenKind::kUserDefined);
    const SpecialRule rule = {.strips_left = token.boolean_or("lstrip", false),
                              .strips_right = token.boolean_or("rstrip", false),
                              .single_word = token.boolean_or("single_word", false),
                              .normalized = token.boolean_or("normalized", !special)};
    if (rule.strips_left || rule.strips_right || rule.single_word || rule.normalized) {
      v.special_rules[id] = rule;
    }
  }
}

// Texts like "<0x0A>" of the model are bytes.
void mark_bytes(Vocabulary& v) {
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (v.kinds[i] != TokenKind::kNormal) continue;
    v.kinds[i] = TokenKind::kByte;
    if (v.byte_of(static_cast<int32_t>(i)) < 0) v.kinds[i] = TokenKind::kNormal;
  }
}

void read_merges(const JsonObject& model, Vocabulary& v) {
  const auto it = model.value().find("merges");
  if (it == model.value().end()) return;
  const auto fail = [&](size_t i) {
    throw LoadError(model.name() + ": \"merges\"[" + std::to_string(i) +
                    "] is neither \"left right\" nor [\"left\", \"right\"]");
  };
  if (!it->is_array()) refuse(model, "merges", "a list", it->type_name());
  v.merges.reserve(it->size());
  for (size_t i = 0; i < it->size(); ++i) {
    const Json& merge = (*it)[i];
    if (merge.is_string()) {
      v.merges.push_back(merge.get<std::string>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string() &&
               merge[0].get_ref<const std::string&>().find(' ') == std::string::npos) {
      v.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
    } else {
      fail(i);
    }
  }
}

// bos_token and its like are a string, an added token, or null.
int32_t named_token(const JsonObject& config,
                    const char* key,
                    const Vocabulary& v,
                    bool required = true) {
  if (!config.has(key)) return -1;
  const std::string text =
      config.value()[key].is_object() ? config.object(key).string("content") : config.string(key);
  const int32_t id = find_token(v, text);
  if (id < 0 && required) refuse(config, key, "a token of the vocabulary", text);
  return id;
}

void read_bpe(const JsonObject& model, Vocabulary& v) {
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    expect_empty(model, key);
  }
  if (model.has("dropout") && model.number("dropout") != 0) {
    refuse(model, "dropout", "none", "a number");
  }
  v.ignore_merges = model.boolean_or("ignore_merges", false);
  v.fuse_unknown = model.boolean_or("fuse_unk", false);
  v.last_merge_wins = true;
  read_merges(model, v);
  if (model.has("unk_token")) v.unknown = named_token(model, "unk_token", v);
}

}  // namespace

Vocabulary load_tokenizer_json(std::string_view tokenizer,
                               std::string_view config,
                               const std::string& source) {
  const JsonObject root = JsonObject::parse(tokenizer, source, kLimits);
  Vocabulary v;
  v.source = source;

  const JsonObject model = root.object("model");
  // Files of before the key hold BPE, or a list of pieces, which is Unigram.
  const std::string type = model.string_or("type", model.is_list("vocab") ? "Unigram" : "BPE");
  if (type != "BPE" && type != "Unigram") refuse(model, "type", "BPE or Unigram", type);
  bool byte_level = false;
  if (root.has("pre_tokenizer")) {
    byte_level = read_pre_tokenizer(root.object("pre_tokenizer"), v);
  }
  v.model = type == "Unigram" ? "unigram" : byte_level ? "bpe" : "char-bpe";
  if (type == "Unigram" && byte_level) {
    refuse(model, "type", "BPE, as the pre_tokenizer is ByteLevel", type);
  }
  if (type == "BPE" && model.is_list("vocab")) refuse(model, "vocab", "an object", "a list");
  if (root.has("normalizer")) read_normalizer(root.object("normalizer"), v);
  v.byte_fallback = model.boolean_or("byte_fallback", false);
  read_tokens(root, model, v);
  if (type == "BPE") {
    read_bpe(model, v);
  } else {
    v.fuse_unknown = true;
    if (model.has("unk_id")) {
      v.unknown = static_cast<int32_t>(model.integer("unk_id", {0, std::ssize(v.tokens) - 1}));
      v.kinds[v.unknown] = TokenKind::kUnknown;
    }
  }
  JsonDecoder decoder;
  if (root.has("decoder")) {
    read_decoder(root.object("decoder"), byte_level, decoder);
  } else if (!byte_level) {
    refuse(root, "decoder", "what joins the tokens to a text", "null");
  }
  v.space = decoder.space;
  v.leading_space = decoder.leading_space;
  if (v.byte_fallback || decoder.bytes) mark_bytes(v);

  if (!config.empty()) {
    const JsonObject names = JsonObject::parse(config, source + " (tokenizer_config)", kLimits);
    v.bos = named_token(names, "bos_token", v);
    v.eos = named_token(names, "eos_token", v);
    v.pad = named_token(names, "pad_token", v, /*required=*/false);
  }
  if (root.has("post_processor")) read_post_processor(root.object("post_processor"), v);
  name_ends(v);
  return v;
}

}  // namespace headwater
