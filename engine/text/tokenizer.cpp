#include "engine/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "engine/text/text_tokenizer.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr size_t kMaxTokens = size_t{1} << 24;

// Texts that end a turn in published models, for files that name only one id. A token counts only
// if it is no normal one: plain text may well contain "</s>".
constexpr std::array<std::string_view, 25> kEndOfGeneration = {
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
    "[e~[",
    "<|tool_response>",
    "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
};

}  // namespace

bool ends_generation(std::string_view text) {
  return std::ranges::find(kEndOfGeneration, text) != kEndOfGeneration.end();
}

namespace {

std::vector<int32_t> end_of_generation(const Vocabulary& v) {
  std::vector<int32_t> ids = v.eog;
  if (v.eos >= 0) ids.push_back(v.eos);
  bool has_return = false, has_call = false;
  int32_t end = -1;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    if (v.kinds[i] == TokenKind::kNormal || v.kinds[i] == TokenKind::kUnused) continue;
    const std::string& text = v.tokens[i];
    if (!ends_generation(text)) continue;
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
  constexpr std::string_view kModels[] = {"bpe", "char-bpe", "spm", "unigram"};
  if (std::ranges::find(kModels, v.model) == std::end(kModels)) {
    fail("tokenizer model \"" + v.model + "\" is not supported; supported: BPE over bytes or " +
         "characters, SentencePiece's BPE, and Unigram");
  }
  const bool needs_scores = v.model == "spm" || v.model == "unigram";
  if ((needs_scores || !v.scores.empty()) && v.scores.size() != size) {
    fail(std::to_string(v.scores.size()) + " token scores, expected " +
         (needs_scores ? "one" : "none or one") + " for each of " + std::to_string(size) +
         " tokens");
  }
  if (!std::ranges::all_of(v.scores, [](double s) { return std::isfinite(s); })) {
    fail("a token's score is no finite number");
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
  for (const auto* ids : {&v.before, &v.after}) {
    for (int32_t id : *ids) {
      check_id(id, "added");
      if (id < 0) fail("a token that is added to every text has no id");
    }
  }
  if (v.add_bos && v.bos < 0) fail("add_bos is set, but no bos token id");
  if (v.add_eos && v.eos < 0) fail("add_eos is set, but no eos token id");
}

}  // namespace

int Vocabulary::byte_of(int32_t id) const {
  const std::string& text = tokens[id];
  if (kinds[id] != TokenKind::kByte || text.size() != 6 || !text.starts_with("<0x") ||
      text[5] != '>') {
    return -1;
  }
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  const size_t high = kDigits.find(text[3]), low = kDigits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return -1;
  return static_cast<int>(16 * high + low);
}

std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary) {
  check(vocabulary);
  if (vocabulary.before.empty() && vocabulary.add_bos) vocabulary.before = {vocabulary.bos};
  if (vocabulary.after.empty() && vocabulary.add_eos) vocabulary.after = {vocabulary.eos};
  std::vector<int32_t> eog = end_of_generation(vocabulary);
  return std::make_unique<TextTokenizer>(std::move(vocabulary), std::move(eog));
}

}  // namespace headwater
