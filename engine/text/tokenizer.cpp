#include "engine/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/text/bpe_tokenizer.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 24;

// Texts that end a turn in published models, for files that name only one id. A token counts only
// if it is no normal one: plain text may well contain "</s>".
constexpr std::array<std::string_view, 24> kEndOfGeneration = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
};

std::vector<int32_t> end_of_generation(const Vocabulary& v) {
  std::vector<int32_t> ids = v.eog;
  if (v.eos >= 0) ids.push_back(v.eos);
  bool has_return = false, has_call = false;
  int32_t end = -1;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (v.kinds[i] == TokenKind::kNormal || v.kinds[i] == TokenKind::kUnused) continue;
    const std::string& text = v.tokens[i];
    if (std::ranges::find(kEndOfGeneration, text) == kEndOfGeneration.end()) continue;
    ids.push_back(static_cast<int32_t>(i));
    has_return |= text == "<|return|>";
    has_call |= text == "<|call|>";
    if (text == "<|end|>") end = static_cast<int32_t>(i);
  }
  // The harmony format closes every message with <|end|>, and the turn with one of these two.
  if (has_return && has_call) std::erase(ids, end);
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

void check(const Vocabulary& v) {
  const auto fail = [&](const std::string& why) { throw LoadError(v.source + ": " + why); };
  const size_t size = v.tokens.size();
  if (size == 0 || size > kMaxTokens) {
    fail("vocabulary of " + std::to_string(size) + " tokens, expected 1 to " +
         std::to_string(kMaxTokens));
  }
  if (v.kinds.size() != size) {
    fail(std::to_string(v.kinds.size()) + " token types, expected one for each of " +
         std::to_string(size) + " tokens");
  }
  if (!v.scores.empty() && v.scores.size() != size) {
    fail(std::to_string(v.scores.size()) + " token scores, expected none or one for each of " +
         std::to_string(size) + " tokens");
  }
  const auto check_id = [&](int32_t id, const char* what) {
    if (id < -1 || id >= static_cast<int64_t>(size)) {
      fail(std::string(what) + " token id " + std::to_string(id) + ", expected below " +
           std::to_string(size));
    }
  };
  check_id(v.bos, "bos");
  check_id(v.eos, "eos");
  check_id(v.unknown, "unknown");
  check_id(v.pad, "padding");
  for (int32_t id : v.eog) check_id(id, "end-of-generation");
  if (v.add_bos && v.bos < 0) fail("add_bos is set, but no bos token id");
  if (v.add_eos && v.eos < 0) fail("add_eos is set, but no eos token id");
}

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary) {
  check(vocabulary);
  if (vocabulary.model == "bpe") {
    std::vector<int32_t> eog = end_of_generation(vocabulary);
    return std::make_unique<BpeTokenizer>(std::move(vocabulary), std::move(eog));
  }
  throw LoadError(vocabulary.source + ": tokenizer model \"" + vocabulary.model +
                  "\" is not supported; supported: bpe (byte-level BPE)");
}

}  // namespace headwater
