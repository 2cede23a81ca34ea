// SpecialSplitter: finds the texts of special tokens, leftmost first and longest at a place.
// Immutable after construction, thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>

namespace headwater {

class SpecialSplitter {
 public:
  struct Match {
    size_t begin, length;
    int32_t id;
  };

  // Empty texts are ignored; of equal texts the first wins.
  void add(std::string_view text, int32_t id);
  // The first match that begins at or after `from`.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  // A trie: edges keyed by (node, byte); node 0 is the root, whose edges are an array.
  static uint64_t edge(uint32_t node, char byte) {
    return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
  }

  std::array<uint32_t, 256> root_{};  // 0: no edge
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::unordered_map<uint32_t, int32_t> ids_;  // by final node
  uint32_t num_nodes_ = 1;
};

}  // namespace headwater
