#include "engine/text/special_splitter.h"

#include <algorithm>
#include <utility>

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
  lengths_.insert(text.size());
}

std::optional<SpecialSplitter::Match> SpecialSplitter::match_at(std::string_view text,
                                                                size_t pos) const {
  uint32_t node = root_[static_cast<uint8_t>(text[pos])];
  std::optional<Match> longest;
  for (size_t end = pos + 1; node != 0; ++end) {
    if (const auto id = ids_.find(node); id != ids_.end()) {
      longest = Match{pos, end - pos, id->second};
    }
    if (end == text.size()) break;
    const auto next = edges_.find(edge(node, text[end]));
    node = next == edges_.end() ? 0 : next->second;
  }
  return longest;
}

std::optional<int32_t> SpecialSplitter::id_of(std::string_view text) const {
  uint32_t node = root_[static_cast<uint8_t>(text[0])];
  for (size_t i = 1; i < text.size() && node != 0; ++i) {
    const auto next = edges_.find(edge(node, text[i]));
    node = next == edges_.end() ? 0 : next->second;
  }
  const auto id = ids_.find(node);
  return id == ids_.end() ? std::nullopt : std::optional(id->second);
}

std::vector<SpecialSplitter::Match> SpecialSplitter::find_all(std::string_view text,
                                                              Order order) const {
  std::vector<Match> out;
  std::vector<Match> touching;  // kLongest: matches of which each overlaps one before it
  size_t end = 0;
  for (size_t pos = 0; pos < text.size(); ++pos) {
    if (root_[static_cast<uint8_t>(text[pos])] == 0) continue;
    const auto match = match_at(text, pos);
    if (!match) continue;
    if (order == Order::kLeftmost) {
      out.push_back(*match);
      pos += match->length - 1;
      continue;
    }
    if (pos >= end && !touching.empty()) resolve(text, std::exchange(touching, {}), out);
    touching.push_back(*match);
    end = std::max(end, pos + match->length);
  }
  if (!touching.empty()) resolve(text, std::move(touching), out);
  return out;
}

void SpecialSplitter::resolve(std::string_view text,
                              std::vector<Match> touching,
                              std::vector<Match>& out) const {
  if (touching.size() == 1) {
    out.push_back(touching[0]);
    return;
  }
  const size_t origin = touching.front().begin;
  std::vector<bool> taken;
  std::vector<Match> accepted;
  for (const size_t length : lengths_) {
    // What is taken so far is at least this long, so it overlaps at an end or not at all.
    std::erase_if(touching, [&](Match& match) {
      const size_t begin = match.begin - origin;
      const auto is_taken = [&](size_t i) { return i < taken.size() && taken[i]; };
      if (is_taken(begin)) return true;
      if (match.length < length || is_taken(begin + length - 1)) return false;
      const auto id = match.length == length ? std::optional(match.id)
                                             : id_of(text.substr(match.begin, length));
      if (!id) return false;
      accepted.push_back({match.begin, length, *id});
      taken.resize(std::max(taken.size(), begin + length));
      std::fill_n(taken.begin() + static_cast<ptrdiff_t>(begin), length, true);
      return true;
    });
  }
  std::ranges::sort(accepted, {}, &Match::begin);
  out.insert(out.end(), accepted.begin(), accepted.end());
}

}  // namespace headwater
