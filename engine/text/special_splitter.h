// SpecialSplitter: finds the texts of special tokens. Immutable once filled, thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace headwater {

class SpecialSplitter {
 public:
  struct Match {
    size_t begin, length;
    int32_t id;
  };
  // Which of overlapping matches counts. The `tokenizers` package takes the leftmost, and the
  // longest at a place; GGUF's reference takes the longest texts first, wherever they are.
  enum class Order : uint8_t { kLeftmost, kLongest };

  // Empty texts are ignored; of equal texts the first wins.
  void add(std::string_view text, int32_t id);
  bool empty() const { return ids_.empty(); }
  // The longest match that begins at pos.
  std::optional<Match> match_at(std::string_view text, size_t pos) const;
  // Matches that do not overlap, from left to right. Linear in the text.
  std::vector<Match> find_all(std::string_view text, Order order) const;

 private:
  // A trie: edges keyed by (node, byte); node 0 is the root, whose edges are an array.
  static uint64_t edge(uint32_t node, char byte) {
    return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
  }
  std::optional<int32_t> id_of(std::string_view text) const;
  void resolve(std::string_view text, std::vector<Match> touching, std::vector<Match>& out) const;

  std::array<uint32_t, 256> root_{};  // 0: no edge
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::unordered_map<uint32_t, int32_t> ids_;  // by final node
  std::set<size_t, std::greater<>> lengths_;
  uint32_t num_nodes_ = 1;
};

}  // namespace headwater
