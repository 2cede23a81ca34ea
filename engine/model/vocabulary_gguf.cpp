#include "engine/model/vocabulary_gguf.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>

#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

// Pre-tokenizers whose files may leave out what these tokenizers always do: begin with BOS, and
// take a whole piece that is a token without merging.
constexpr std::string_view kWholePieceWithBos[] = {"llama3",
                                                   "llama-v3",
                                                   "llama-bpe",
                                                   "falcon3",
                                                   "falcon-h1",
                                                   "pixtral",
                                                   "midm-2.0",
                                                   "lfm2",
                                                   "tekken"};

// BPE files without the key mean token 11, GPT-2's and Falcon's; only a control token can be it.
constexpr int32_t kDefaultBpeSpecial = 11;

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

Vocabulary read_gguf_vocabulary(const GgufFile& file) {
  Vocabulary vocabulary;
  vocabulary.source = file.name();
  const std::string_view model = file.required_string(key("model"));
  if (model != "gpt2") {
    throw LoadError(file.name() + ": metadata key \"tokenizer.ggml.model\" is " + quote(model) +
                    ", which is not supported; expected \"gpt2\" (byte-level BPE)");
  }
  vocabulary.model = "bpe";
  vocabulary.pre = file.string(key("pre")).value_or("default");

  const auto tokens = file.strings(key("tokens"));
  if (!tokens || tokens->empty()) {
    throw LoadError(
        file.name() +
        ": metadata key \"tokenizer.ggml.tokens\" is missing or empty, expected the vocabulary");
  }
  vocabulary.tokens.assign(tokens->begin(), tokens->end());
  vocabulary.kinds = read_kinds(file, tokens->size());
  check_length(file, "token_type", vocabulary.kinds.size(), tokens->size());
  if (auto scores = file.numbers(key("scores"))) {
    check_length(file, "scores", scores->size(), tokens->size());
    vocabulary.scores = std::move(*scores);
  }
  const auto merges = file.strings(key("merges"));
  if (!merges) {
    throw LoadError(
        file.name() +
        ": metadata key \"tokenizer.ggml.merges\" is missing, expected the merges of the BPE");
  }
  vocabulary.merges.assign(merges->begin(), merges->end());

  const bool whole_piece =
      std::find(std::begin(kWholePieceWithBos), std::end(kWholePieceWithBos), vocabulary.pre) !=
      std::end(kWholePieceWithBos);
  vocabulary.ignore_merges = whole_piece;
  vocabulary.bos =
      special_id(file, "bos_token_id", tokens->size()).value_or(default_special(vocabulary));
  vocabulary.eos =
      special_id(file, "eos_token_id", tokens->size()).value_or(default_special(vocabulary));
  vocabulary.unknown = special_id(file, "unknown_token_id", tokens->size()).value_or(-1);
  vocabulary.pad = special_id(file, "padding_token_id", tokens->size()).value_or(-1);
  vocabulary.add_bos =
      file.boolean(key("add_bos_token")).value_or(whole_piece) && vocabulary.bos >= 0;
  vocabulary.add_eos = file.boolean(key("add_eos_token")).value_or(false) && vocabulary.eos >= 0;
  return vocabulary;
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
