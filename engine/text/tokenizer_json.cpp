#include "engine/text/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "engine/io/json_object.h"
#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

using Json = nlohmann::json;

constexpr JsonLimits kLimits = {.max_bytes = 256 << 20, .max_depth = 32, .max_values = 8 << 20};
constexpr IntRange kIdRange = {.min = 0, .max = (1 << 24) - 1};

// What ByteLevel cuts by when it says use_regex.
constexpr const char* kByteLevelRegex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

[[noreturn]] void refuse(const JsonObject& object,
                         std::string_view key,
                         std::string_view expected,
                         std::string_view got) {
  throw LoadError(object.name() + ": \"" + std::string(key) + "\" is " + quote(got) +
                  ", expected " + std::string(expected));
}

void expect_false(const JsonObject& object, std::string_view key) {
  if (object.boolean_or(key, false)) refuse(object, key, "false", "true");
}

void expect_empty(const JsonObject& object, std::string_view key) {
  const std::string value = object.string_or(key, "");
  if (!value.empty()) refuse(object, key, "none", value);
}

// An expression that matches the text and nothing else.
std::string literally(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view(R"(\^$.[]|()?*+{}#-)").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

std::string split_expression(const JsonObject& split) {
  const JsonObject pattern = split.object("pattern");
  const std::string expression =
      pattern.has("Regex") ? pattern.string("Regex") : literally(pattern.string("String"));
  // Removed with invert keeps the matches and drops the gaps; expressions used so leave no gaps.
  const std::string behavior = split.string("behavior");
  const bool invert = split.boolean_or("invert", false);
  if (!(behavior == "Isolated" || (behavior == "Removed" && invert))) {
    refuse(split, "behavior", "Isolated, or Removed with invert", behavior);
  }
  return expression;
}

// The stages of a pre_tokenizer that ends in ByteLevel.
std::vector<std::string> read_stages(const JsonObject& pre) {
  const bool is_sequence = pre.string("type") == "Sequence";
  std::vector<JsonObject> list;
  if (is_sequence) list = pre.objects("pretokenizers");
  const size_t size = is_sequence ? list.size() : 1;
  std::vector<std::string> stages;
  bool mapped = false;
  for (size_t i = 0; i < size; ++i) {
    const JsonObject& item = is_sequence ? list[i] : pre;
    const std::string type = item.string("type");
    if (mapped) refuse(item, "type", "nothing after ByteLevel", type);
    if (type == "ByteLevel") {
      expect_false(item, "add_prefix_space");
      if (item.boolean_or("use_regex", true)) stages.push_back(kByteLevelRegex);
      mapped = true;
    } else if (type == "Digits") {
      stages.push_back(item.boolean_or("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
    } else if (type == "Split") {
      stages.push_back(split_expression(item));
    } else {
      refuse(item, "type", "Split, Digits or ByteLevel", type);
    }
  }
  if (!mapped) refuse(pre, "type", "a pre-tokenizer with ByteLevel", pre.string("type"));
  // No stage at all: the whole text is one piece.
  if (stages.empty()) stages.push_back(R"((?s).+)");
  return stages;
}

// What a TemplateProcessing adds around the text: {before, after}.
std::pair<std::vector<std::string>, std::vector<std::string>> read_template(
    const JsonObject& processor) {
  std::vector<std::string> around[2];
  bool after = false;
  for (const JsonObject& item : processor.objects("single")) {
    if (item.has("Sequence")) {
      if (std::exchange(after, true)) refuse(processor, "single", "one Sequence", "two");
    } else {
      around[after].push_back(item.object("SpecialToken").string("id"));
    }
  }
  return {around[0], around[1]};
}

int32_t find_token(const Vocabulary& v, const std::string& text) {
  const auto it = std::ranges::find(v.tokens, text);
  return it == v.tokens.end() ? -1 : static_cast<int32_t>(it - v.tokens.begin());
}

void read_post_processor(const JsonObject& processor, Vocabulary& v) {
  const std::string type = processor.string("type");
  if (type == "Sequence") {
    for (const JsonObject& item : processor.objects("processors")) read_post_processor(item, v);
    return;
  }
  if (type == "ByteLevel") return;  // changes offsets only
  if (type != "TemplateProcessing") {
    refuse(processor, "type", "TemplateProcessing, ByteLevel or a Sequence of them", type);
  }
  const auto [before, after] = read_template(processor);
  const auto one_token = [&](const std::vector<std::string>& texts, bool& add, int32_t& id) {
    if (texts.empty()) return;
    const int32_t found = find_token(v, texts[0]);
    if (texts.size() > 1 || found < 0) {
      refuse(processor, "single", "at most one token of the vocabulary on each side", texts[0]);
    }
    add = true;
    id = found;
  };
  one_token(before, v.add_bos, v.bos);
  one_token(after, v.add_eos, v.eos);
}

void place(Vocabulary& v, int64_t id, std::string text, TokenKind kind) {
  v.tokens[id] = std::move(text);
  v.kinds[id] = kind;
}

void read_tokens(const JsonObject& root, const JsonObject& model, Vocabulary& v) {
  const JsonObject vocab = model.object("vocab");
  std::vector<JsonObject> added;
  if (root.has("added_tokens")) added = root.objects("added_tokens");
  const int64_t num_entries = static_cast<int64_t>(vocab.value().size() + added.size());
  // Ids may have holes, but not so many that a small file asks for a large table.
  const IntRange range = {.min = 0, .max = std::min(kIdRange.max, 2 * num_entries + 1024)};
  int64_t size = 0;
  for (const auto& [text, id] : vocab.value().items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > range.max) {
      throw LoadError(vocab.name() + ": id of token " + quote(text) + " is no integer from 0 to " +
                      std::to_string(range.max));
    }
    size = std::max(size, id.get<int64_t>() + 1);
  }
  for (const JsonObject& token : added) size = std::max(size, token.integer("id", range) + 1);

  v.tokens.resize(size);
  v.kinds.assign(size, TokenKind::kUnused);
  for (const auto& [text, id] : vocab.value().items()) {
    place(v, id.get<int64_t>(), text, TokenKind::kNormal);
  }
  for (const JsonObject& token : added) {
    for (const char* key : {"single_word", "lstrip", "rstrip"}) expect_false(token, key);
    place(v,
          token.integer("id", range),
          token.string("content"),
          token.boolean_or("special", false) ? TokenKind::kControl : TokenKind::kUserDefined);
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
int32_t named_token(const JsonObject& config, const char* key, const Vocabulary& v) {
  if (!config.has(key)) return -1;
  const std::string text =
      config.value()[key].is_object() ? config.object(key).string("content") : config.string(key);
  const int32_t id = find_token(v, text);
  if (id < 0) refuse(config, key, "a token of the vocabulary", text);
  return id;
}

}  // namespace

Vocabulary load_tokenizer_json(std::string_view tokenizer,
                               std::string_view config,
                               const std::string& source) {
  const JsonObject root = JsonObject::parse(tokenizer, source, kLimits);
  Vocabulary v;
  v.model = "bpe";
  v.source = source;

  const JsonObject model = root.object("model");
  const std::string type = model.string_or("type", "BPE");
  if (type != "BPE") refuse(model, "type", "BPE", type);
  for (const char* key : {"byte_fallback", "fuse_unk"}) expect_false(model, key);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    expect_empty(model, key);
  }
  if (model.has("dropout") && model.number("dropout") != 0) {
    refuse(model, "dropout", "none", "a number");
  }
  v.ignore_merges = model.boolean_or("ignore_merges", false);
  if (root.has("normalizer")) {
    const JsonObject normalizer = root.object("normalizer");
    refuse(normalizer, "type", "no normalizer", normalizer.string("type"));
  }
  if (!root.has("pre_tokenizer")) refuse(root, "pre_tokenizer", "one with ByteLevel", "null");
  v.pre_regex = read_stages(root.object("pre_tokenizer"));
  read_tokens(root, model, v);
  read_merges(model, v);
  if (model.has("unk_token")) v.unknown = named_token(model, "unk_token", v);

  if (!config.empty()) {
    const JsonObject names = JsonObject::parse(config, source + " (tokenizer_config)", kLimits);
    v.bos = named_token(names, "bos_token", v);
    v.eos = named_token(names, "eos_token", v);
    v.pad = named_token(names, "pad_token", v);
    if (v.unknown < 0) v.unknown = named_token(names, "unk_token", v);
  }
  if (root.has("post_processor")) read_post_processor(root.object("post_processor"), v);
  return v;
}

}  // namespace headwater
