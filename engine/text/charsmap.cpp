#include "engine/text/charsmap.h"

#include <cstring>

#include "kernels/base/status.h"

namespace headwater {
namespace {

// The fields of a unit, as darts-clone packs them.
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & (1U << 9)) >> 6); }
uint32_t label_of(uint32_t unit) { return unit & ((1U << 31) | 0xFF); }
bool has_leaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t value_of(uint32_t unit) { return unit & ((1U << 31) - 1); }

}  // namespace

Charsmap::Charsmap(std::string_view bytes, const std::string& source) {
  uint32_t trie_bytes = 0;
  const bool has_size = bytes.size() >= sizeof(trie_bytes);
  if (has_size) std::memcpy(&trie_bytes, bytes.data(), sizeof(trie_bytes));
  if (!has_size || trie_bytes % sizeof(uint32_t) != 0 ||
      trie_bytes > bytes.size() - sizeof(trie_bytes)) {
    throw LoadError(source + ": the precompiled charsmap of " + std::to_string(bytes.size()) +
                    " bytes says its trie has " + std::to_string(trie_bytes));
  }
  units_.resize(trie_bytes / sizeof(uint32_t));
  std::memcpy(units_.data(), bytes.data() + sizeof(trie_bytes), trie_bytes);
  replacements_ = bytes.substr(sizeof(trie_bytes) + trie_bytes);
}

template <typename Found>
void Charsmap::walk(std::string_view text, const Found& found) const {
  if (units_.empty()) return;
  size_t node = offset_of(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte == 0) return;
    node ^= byte;
    if (node >= units_.size() || label_of(units_[node]) != byte) return;
    const bool leaf = has_leaf(units_[node]);
    node ^= offset_of(units_[node]);
    if (node >= units_.size()) return;
    if (leaf && !found(i + 1, value_of(units_[node]))) return;
  }
}

std::optional<std::string_view> Charsmap::replacement(uint32_t offset) const {
  if (offset >= replacements_.size()) return std::nullopt;
  const size_t end = replacements_.find('\0', offset);
  if (end == std::string::npos) return std::nullopt;
  return std::string_view(replacements_).substr(offset, end - offset);
}

std::optional<Charsmap::Match> Charsmap::longest(std::string_view text) const {
  std::optional<Match> best;
  walk(text, [&](size_t length, uint32_t offset) {
    if (const auto found = replacement(offset)) best = Match{length, *found};
    return true;
  });
  return best;
}

std::optional<Charsmap::Match> Charsmap::shortest(std::string_view text) const {
  std::optional<Match> first;
  walk(text, [&](size_t length, uint32_t offset) {
    if (const auto found = replacement(offset)) first = Match{length, *found};
    return false;
  });
  return first;
}

}  // namespace headwater
