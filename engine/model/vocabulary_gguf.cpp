#include "engine/model/vocabulary_gguf.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

// What a pre-tokenizer's name says beside its expressions, for keys that a file may leave out.
struct PreTraits {
  std::string_view name;
  bool whole_pieces;  // a piece that is a token is taken without merging
  bool add_bos;
};
constexpr PreTraits kPreTraits[] = {
    {"llama3", true, true},
    {"llama-v3", true, true},
    {"llama-bpe", true, true},
    {"falcon3", true, true},
    {"falcon-h1", true, true},
    {"pixtral", true, true},
    {"midm-2.0", true, true},
    {"lfm2", true, true},
    {"jina-v5-nano", true, true},
    {"tekken", true, true},
    {"chameleon", false, true},
    {"gemma4", false, true},
    {"minicpm5", true, false},
    {"youtu", true, false},
    {"granite-embed-multi-97m", true, false},
};

// BPE files without the key mean token 11, GPT-2's and Falcon's; only a control token can be it.
constexpr int32_t kDefaultBpeSpecial = 11;

constexpr const char* kSpaceMark = "\u2581";

// Special ids of SentencePiece files without the keys.
struct Defaults {
  int32_t bos = -1, eos = -1, unknown = -1;
  bool add_bos = false, add_eos = false;
};

std::string key(std::string_view name) { return "tokenizer.ggml." + std::string(name); }

std::vector<TokenKind> read_kinds(const GgufFile& file, size_t num_tokens) {
  constexpr TokenKind kKinds[] = {TokenKind::kNormal,
                                  TokenKind::kNormal,
                                  TokenKind::kUnknown,
                                  TokenKind::kControl,
                                  TokenKind::kUserDefined,
                                  TokenKind::kUnused,
                                  TokenKind::kByte};
  const auto values = file.integers(key("token_type"), {0, std::ssize(kKinds) - 1});
  if (!values) return std::vector<TokenKind>(num_tokens, TokenKind::kNormal);
  std::vector<TokenKind> kinds;
  kinds.reserve(values->size());
  for (const int64_t value : *values) kinds.push_back(kKinds[value]);
  return kinds;
}

void check_length(const GgufFile& file, std::string_view name, size_t got, size_t expected) {
  if (got != expected) {
    throw LoadError(file.name() + ": metadata key " + quote(key(name)) + " has " +
                    std::to_string(got) + " elements, expected " + std::to_string(expected) +
                    " as \"tokenizer.ggml.tokens\"");
  }
}

std::optional<int32_t> special_id(const GgufFile& file, std::string_view name, size_t num_tokens) {
  const auto id = file.integer(key(name), {-1, static_cast<int64_t>(num_tokens) - 1});
  if (!id) return std::nullopt;
  return static_cast<int32_t>(*id);
}

int32_t default_special(const Vocabulary& vocabulary) {
  const auto id = static_cast<size_t>(kDefaultBpeSpecial);
  const bool is_special =
      id < vocabulary.kinds.size() && vocabulary.kinds[id] == TokenKind::kControl;
  return is_special ? kDefaultBpeSpecial : -1;
}

}  // namespace

namespace {

PreTraits traits_of(std::string_view pre) {
  for (const PreTraits& traits : kPreTraits) {
    if (traits.name == pre) return traits;
  }
  return {pre, false, false};
}

void read_tokens(const GgufFile& file, Vocabulary& v) {
  const auto tokens = file.strings(key("tokens"));
  if (!tokens || tokens->empty()) {
    throw LoadError(
        file.name() +
        ": metadata key \"tokenizer.ggml.tokens\" is missing or empty, expected the vocabulary");
  }
  v.tokens.assign(tokens->begin(), tokens->end());
  v.kinds = read_kinds(file, tokens->size());
  check_length(file, "token_type", v.kinds.size(), tokens->size());
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    // Some files call these the user's; plain text must not end a turn.
    if (v.kinds[i] == TokenKind::kUserDefined && ends_generation(v.tokens[i])) {
      v.kinds[i] = TokenKind::kControl;
    }
  }
  if (const auto scores = file.numbers(key("scores"))) {
    check_length(file, "scores", scores->size(), tokens->size());
    v.scores.assign(scores->begin(), scores->end());
  }
}

void read_merges(const GgufFile& file, Vocabulary& v) {
  const auto merges = file.strings(key("merges"));
  if (!merges) {
    throw LoadError(
        file.name() +
        ": metadata key \"tokenizer.ggml.merges\" is missing, expected the merges of the BPE");
  }
  v.merges.assign(merges->begin(), merges->end());
}

// Vocabularies that spell a space as U+2581 and may have a token for each byte.
void mark_spaces(Vocabulary& v) {
  v.space = kSpaceMark;
  v.byte_fallback = true;
  v.fuse_unknown = true;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (is_special(v.kinds[i])) continue;
    const TokenKind kind = std::exchange(v.kinds[i], TokenKind::kByte);
    if (v.byte_of(static_cast<int32_t>(i)) < 0) v.kinds[i] = kind;
  }
}

Defaults read_bpe(const GgufFile& file, Vocabulary& v) {
  v.model = "bpe";
  v.pre = file.string(key("pre")).value_or("default");
  v.pre_steps = pre_steps_of(v.pre, v.source);
  v.drop_unknown = true;
  read_merges(file, v);
  const PreTraits traits = traits_of(v.pre);
  v.ignore_merges = traits.whole_pieces;
  const int32_t special = default_special(v);
  return {special, special, -1, traits.add_bos, false};
}

Defaults read_gemma4(const GgufFile& file, Vocabulary& v) {
  v.model = "char-bpe";
  v.pre = "gemma4";
  v.pre_steps = pre_steps_of(v.pre, v.source);
  v.normalizer = {{.kind = NormalizerStep::Kind::kReplace, .from = " ", .to = kSpaceMark}};
  read_merges(file, v);
  mark_spaces(v);
  v.drop_unknown = true;
  return {-1, -1, -1, true, false};
}

Defaults read_sentence_piece(const GgufFile& file, Vocabulary& v) {
  v.model = "spm";
  v.leading_space = file.boolean(key("add_space_prefix")).value_or(true);
  if (v.leading_space) {
    v.normalizer.push_back({.kind = NormalizerStep::Kind::kPrepend, .to = kSpaceMark});
  }
  v.normalizer.push_back({.kind = NormalizerStep::Kind::kReplace, .from = " ", .to = kSpaceMark});
  if (v.scores.empty()) v.scores.assign(v.tokens.size(), 0);
  mark_spaces(v);
  return {1, 2, 0, true, false};
}

Defaults read_unigram(const GgufFile& file, Vocabulary& v) {
  v.model = "unigram";
  v.free_user_defined = true;
  NormalizerStep step{.kind = NormalizerStep::Kind::kSentencePiece, .to = kSpaceMark};
  if (const auto charsmap = file.integers(key("precompiled_charsmap"), {-128, 255})) {
    for (const int64_t byte : *charsmap) step.charsmap += static_cast<char>(byte);
  }
  step.add_prefix = file.boolean(key("add_space_prefix")).value_or(false);
  step.merge_spaces = file.boolean(key("remove_extra_whitespaces")).value_or(false);
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (v.kinds[i] == TokenKind::kUserDefined) step.untouched.push_back(v.tokens[i]);
  }
  v.leading_space = step.add_prefix;
  v.normalizer = {std::move(step)};
  mark_spaces(v);
  v.byte_fallback = false;
  return {-1, 1, 2, false, true};
}

// Files say nothing of what a special token does to the spaces beside it; these models do it.
void read_rules(const GgufFile& file, Vocabulary& v) {
  std::string name(file.string("general.name").value_or(""));
  std::ranges::transform(name, name.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  });
  if (name.find("phi-3") == std::string::npos && name.find("phi3") == std::string::npos) return;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    const std::string& text = v.tokens[i];
    if (text == "<unk>" || text == "<s>" || text == "<|endoftext|>") continue;
    if (is_special(v.kinds[i]) || text == "</s>") {
      v.special_rules[static_cast<int32_t>(i)].strips_right = true;
    }
  }
}

struct Reader {
  std::string_view model;
  Defaults (*read)(const GgufFile& file, Vocabulary& vocabulary);
};
constexpr Reader kReaders[] = {{"gpt2", read_bpe},
                               {"gemma4", read_gemma4},
                               {"llama", read_sentence_piece},
                               {"t5", read_unigram}};

}  // namespace

Vocabulary read_gguf_vocabulary(const GgufFile& file) {
  const std::string_view model = file.required_string(key("model"));
  const auto* reader = std::ranges::find(kReaders, model, &Reader::model);
  if (reader == std::end(kReaders)) {
    throw LoadError(file.name() + ": metadata key \"tokenizer.ggml.model\" is " + quote(model) +
                    ", which is not supported; expected \"gpt2\" (byte-level BPE), \"llama\" "
                    "(SentencePiece), \"t5\" (Unigram) or \"gemma4\"");
  }
  Vocabulary v;
  v.source = file.name();
  v.special_order = SpecialSplitter::Order::kLongest;
  read_tokens(file, v);
  Defaults defaults = reader->read(file, v);
  read_rules(file, v);
  const size_t size = v.tokens.size();
  const auto within = [&](int32_t id) { return id < static_cast<int64_t>(size) ? id : -1; };
  v.bos = special_id(file, "bos_token_id", size).value_or(within(defaults.bos));
  v.eos = special_id(file, "eos_token_id", size).value_or(within(defaults.eos));
  v.unknown = special_id(file, "unknown_token_id", size).value_or(within(defaults.unknown));
  v.pad = special_id(file, "padding_token_id", size).value_or(-1);
  v.add_bos = file.boolean(key("add_bos_token")).value_or(defaults.add_bos) && v.bos >= 0;
  v.add_eos = file.boolean(key("add_eos_token")).value_or(defaults.add_eos) && v.eos >= 0;
  return v;
}

std::vector<int32_t> read_gguf_eos(const GgufFile& file, const Vocabulary& vocabulary) {
  std::vector<int32_t> ids;
  if (vocabulary.eos >= 0) ids.push_back(vocabulary.eos);
  for (const char* name : {"eot_token_id", "eom_token_id"}) {
    const int32_t id = special_id(file, name, vocabulary.tokens.size()).value_or(-1);
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return ids;
}

}  // namespace headwater
