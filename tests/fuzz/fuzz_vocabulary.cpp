// The vocabulary of a GGUF file: loads, or is refused; what loads encodes any text and gives bytes
// for every id. The input is "kind byte, then records": a small file is made of it, so that the
// fuzzer works on tokens, scores, merges and texts rather than on the container.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/detokenizer.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

// Splits at bytes 0xFF, which no UTF-8 text has.
std::vector<std::string> records(std::string_view bytes) {
  std::vector<std::string> out;
  while (!bytes.empty()) {
    const size_t end = std::min(bytes.find('\xFF'), bytes.size());
    out.emplace_back(bytes.substr(0, end));
    bytes.remove_prefix(std::min(end + 1, bytes.size()));
  }
  return out;
}

void run(std::string_view bytes) {
  constexpr const char* kModels[] = {"bpe", "char-bpe", "spm", "unigram"};
  if (bytes.size() < 2) return;
  const auto kind = static_cast<uint8_t>(bytes[0]);
  std::vector<std::string> parts = records(bytes.substr(1));
  if (parts.size() < 2) return;
  Vocabulary v;
  v.source = "fuzz";
  v.model = kModels[kind & 3];
  const bool byte_level = v.model == std::string_view("bpe");
  v.special_order = kind & 4 ? SpecialSplitter::Order::kLongest : SpecialSplitter::Order::kLeftmost;
  v.byte_fallback = kind & 8;
  v.fuse_unknown = kind & 16;
  v.ignore_merges = kind & 32;
  v.space = "\u2581";
  v.leading_space = kind & 64;
  if (kind & 64) v.normalizer.push_back({.kind = NormalizerStep::Kind::kPrepend, .to = v.space});
  if (kind & 128) v.normalizer.push_back({.kind = NormalizerStep::Kind::kNfkc});
  const std::string text = parts.back();
  parts.pop_back();
  // Each record: a byte of kind and rule, a byte of score, then the token; or, with a space inside
  // and the first byte 7, a merge.
  for (const std::string& part : parts) {
    if (part.size() < 3) continue;
    const auto rule = static_cast<uint8_t>(part[0]);
    const std::string token = part.substr(2);
    if ((rule & 7) == 7) {
      v.merges.push_back(token);
      continue;
    }
    if (rule & 0xF8) {
      v.special_rules[static_cast<int32_t>(v.tokens.size())] = {.strips_left = (rule & 8) != 0,
                                                                .strips_right = (rule & 16) != 0,
                                                                .single_word = (rule & 32) != 0,
                                                                .normalized = (rule & 64) != 0};
    }
    v.tokens.push_back(token);
    v.kinds.push_back(static_cast<TokenKind>(std::min(rule & 7, 5)));
    v.scores.push_back(static_cast<int8_t>(part[1]) / 4.0);
  }
  v.unknown = v.tokens.empty() ? -1 : 0;
  if (byte_level) v.pre_steps = pre_steps_of("default", "fuzz");
  const auto tokenizer = make_tokenizer(std::move(v));
  for (const bool parse_special : {false, true}) {
    Detokenizer detokenizer(*tokenizer, parse_special, true);
    for (const int32_t id : tokenizer->encode(text, true, parse_special)) {
      if (id < 0 || id >= tokenizer->vocab_size()) __builtin_trap();
      detokenizer.push(id);
    }
    detokenizer.flush();
  }
}

}  // namespace
}  // namespace headwater

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    headwater::run({reinterpret_cast<const char*>(data), size});
  } catch (const headwater::LoadError&) {
  }
  return 0;
}
