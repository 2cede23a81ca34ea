// Charsmap: SentencePiece's precompiled table of normalisations: a trie of byte sequences (an
// XOR-compressed double array) to replacement texts. Hostile tables give no match, never a read
// outside. Immutable after construction, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace headwater {

class Charsmap {
 public:
  // bytes: u32 size of the trie, the trie, the replacements, each ended by a zero. Throws
  // LoadError.
  Charsmap(std::string_view bytes, const std::string& source);

  struct Match {
    size_t length;  // bytes of the text
    std::string_view replacement;
  };
  std::optional<Match> longest(std::string_view text) const;
  std::optional<Match> shortest(std::string_view text) const;

 private:
  template <typename Found>
  void walk(std::string_view text, const Found& found) const;
  std::optional<std::string_view> replacement(uint32_t offset) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace headwater
