#include "engine/text/special_splitter.h"

namespace headwater {

void SpecialSplitter::add(std::string_view text, int32_t id) {
  if (text.empty()) return;
  uint32_t& first = root_[static_cast<uint8_t>(text[0])];
  if (first == 0) first = num_nodes_++;
  uint32_t node = first;
  for (char byte : text.substr(1)) {
    const auto [it, inserted] = edges_.try_emplace(edge(node, byte), num_nodes_);
    if (inserted) ++num_nodes_;
    node = it->second;
  }
  ids_.try_emplace(node, id);
}

std::optional<SpecialSplitter::Match> SpecialSplitter::find(std::string_view text,
                                                            size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    uint32_t node = root_[static_cast<uint8_t>(text[begin])];
    if (node == 0) continue;
    std::optional<Match> longest;
    for (size_t end = begin + 1;; ++end) {
      if (const auto id = ids_.find(node); id != ids_.end()) {
        longest = Match{begin, end - begin, id->second};
      }
      if (end == text.size()) break;
      const auto next = edges_.find(edge(node, text[end]));
      if (next == edges_.end()) break;
      node = next->second;
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

}  // namespace headwater
