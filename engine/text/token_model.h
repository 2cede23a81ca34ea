// TokenModel: the last step of encoding, a piece of text to ids. One implementation per algorithm;
// immutable after construction, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "engine/text/tokenizer.h"

namespace headwater {

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // piece: valid UTF-8, not empty. Appends its ids.
  virtual void encode(std::string_view piece, std::vector<int32_t>& ids) const = 0;
  // A byte that is no UTF-8: its own token, or nothing.
  virtual void encode_byte(uint8_t byte, std::vector<int32_t>& ids) const = 0;
};

// Where a text may be cut without changing what it becomes: between two characters that are
// neighbours in no token. It bounds the work on a text that no pre-tokenizer cuts.
class Seams {
 public:
  // Learns the neighbours inside a token.
  void add(std::string_view token);
  bool joined(char32_t left, char32_t right) const;
  // Where the stretch that begins at pos ends.
  size_t next_seam(std::string_view text, size_t pos) const;

 private:
  static constexpr char32_t kAscii = 128;
  static uint64_t key(char32_t left, char32_t right) { return uint64_t{left} << 32 | right; }
  std::vector<bool> ascii_ = std::vector<bool>(kAscii * kAscii);
  std::unordered_set<uint64_t> others_;
};

// What stands for a text the vocabulary has no token for: a token for each byte, or one unknown
// token for a run of such characters, or for each.
class Fallback {
 public:
  explicit Fallback(const Vocabulary& vocabulary);
  // run: whether the character before fell back to the unknown token too; kept by the caller.
  void encode(std::string_view text, bool& run, std::vector<int32_t>& ids) const;
  void encode_byte(uint8_t byte, std::vector<int32_t>& ids) const;

 private:
  std::vector<int32_t> bytes_;  // [256], or empty: no fallback to bytes
  int32_t unknown_;             // below zero: dropped
  bool fuse_;
};

}  // namespace headwater
