// Byte-level BPE. Special tokens are cut out first (leftmost, longest), the rest is cut into pieces
// by the pre-tokenizer, and the bytes of a piece are merged pair by pair, best rank first, leftmost
// of equals. Bytes that are not UTF-8 are pieces of their own, so decoding gives back every input
// whose bytes the vocabulary holds; a byte it lacks is dropped.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>

#include "engine/text/pre_tokenizer.h"
#include "engine/text/special_splitter.h"
#include "engine/text/tokenizer.h"

namespace headwater {

// (left id, right id) -> what they merge to. Open addressing: one probe, one cache line, mostly.
class MergeTable {
 public:
  static constexpr uint32_t kNoRank = ~0U;
  struct Merge {
    uint32_t rank = kNoRank;
    int32_t id = -1;
  };

  explicit MergeTable(size_t num_merges);
  // Of equal pairs the first added (the best rank) stays.
  void add(int32_t left, int32_t right, Merge merge);
  Merge find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t pair = kEmpty;
    Merge merge;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t pair) const { return (pair * 0x9E3779B97F4A7C15u) >> shift_; }

  std::vector<Slot> slots_;  // a power of two, at most half full
  int shift_;
};

class BpeTokenizer final : public Tokenizer {
 public:
  // eog: sorted, within range. Throws LoadError.
  BpeTokenizer(Vocabulary vocabulary, std::vector<int32_t> eog);

  std::vector<int32_t> encode(std::string_view text,
                              bool add_special,
                              bool parse_special) const override;
  std::string token_bytes(int32_t id, bool with_special) const override;
  std::string_view token_text(int32_t id) const override;
  bool is_control(int32_t id) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(vocabulary_.tokens.size()); }
  int32_t bos() const override { return vocabulary_.bos; }
  int32_t eos() const override { return vocabulary_.eos; }
  bool adds_bos() const override { return vocabulary_.add_bos; }
  const std::vector<int32_t>& eog_ids() const override { return eog_; }
  int32_t find(std::string_view token) const override;

 private:
  void index_tokens();
  void index_merges();
  void index_whole_pieces();
  void encode_text(std::string_view text, std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_short(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_long(std::string_view piece, std::vector<int32_t>& ids) const;
  static void emit(int32_t symbol, std::vector<int32_t>& ids);
  bool in_range(int32_t id) const { return id >= 0 && id < vocab_size(); }

  Vocabulary vocabulary_;
  std::vector<int32_t> eog_;
  PreTokenizer pre_tokenizer_;
  SpecialSplitter user_defined_, all_special_;
  std::vector<std::string> bytes_;                         // [V] what a token adds to the text
  std::unordered_map<std::string_view, int32_t> by_text_;  // keys live in vocabulary_.tokens
  // Pieces that are one token whether merged or looked up; keys live in bytes_.
  std::unordered_map<std::string_view, int32_t> whole_pieces_;
  std::array<int32_t, 256> byte_ids_;  // below zero: the vocabulary lacks the byte
  MergeTable merges_;
};

}  // namespace headwater
