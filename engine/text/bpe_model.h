// BpeModel: pairs of symbols are merged, best rank first, leftmost of equals. One algorithm for
// three kinds of vocabulary: byte-level BPE (symbols begin as bytes, ranks are the order of the
// merges), the same over characters, and SentencePiece's BPE (characters; any two symbols that make
// a token merge, ranked by its score).
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/token_model.h"

namespace headwater {

// (left symbol, right symbol) -> what they merge to. Open addressing: one probe, one cache line,
// mostly.
class MergeTable {
 public:
  static constexpr uint32_t kNoRank = ~0U;
  struct Merge {
    uint32_t rank = kNoRank;
    int32_t id = -1;
  };

  explicit MergeTable(size_t num_merges);
  // Of equal pairs the first added stays, or the last if `replace`.
  void add(int32_t left, int32_t right, Merge merge, bool replace);
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

class BpeModel final : public TokenModel {
 public:
  // vocabulary is not owned; bytes: what each of its tokens adds to a text. Throws LoadError.
  BpeModel(const Vocabulary& vocabulary, const std::vector<std::string>& bytes);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
  void encode_byte(uint8_t byte, std::vector<int32_t>& ids) const override;

 private:
  struct Symbol {
    int32_t id;       // a token; below zero: a character or byte without one
    uint32_t length;  // in bytes of the piece
  };

  void index_tokens();
  void index_merges();
  void index_scores();
  void index_whole_pieces();
  int32_t character_id(std::string_view character) const;
  // The stretch's first symbol.
  Symbol first_symbol(std::string_view text) const;
  void encode_stretch(std::string_view text, bool& run, std::vector<int32_t>& ids) const;
  void merge(std::string_view text, bool& run, std::vector<int32_t>& ids) const;
  void merge_short(std::string_view text, bool& run, std::vector<int32_t>& ids) const;
  void merge_long(std::string_view text, bool& run, std::vector<int32_t>& ids) const;
  void emit(Symbol symbol, std::string_view text, bool& run, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary_;           // not owned
  const std::vector<std::string>& bytes_;  // not owned
  const bool byte_level_;
  Fallback fallback_;
  Seams seams_;
  std::unordered_map<std::string_view, int32_t> by_text_;  // what plain text may become
  // Characters without a token that merges know: below kUnknownSymbol.
  std::unordered_map<std::string_view, int32_t> loose_characters_;
  // Pieces that are one token whether merged or looked up; keys live in bytes_ or the vocabulary.
  std::unordered_map<std::string_view, int32_t> whole_pieces_;
  // Of every byte, or of the characters of one; below zero: the vocabulary lacks it.
  std::array<int32_t, 256> byte_ids_{};
  MergeTable merges_;
};

}  // namespace headwater
