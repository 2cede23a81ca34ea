#include "kvcache/prefix_index.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace headwater::kv {
namespace {

// FNV-1a over whole ids. Only spreads: equality is decided by the tokens themselves.
uint64_t hash_tokens(std::span<const int32_t> tokens) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (int32_t token : tokens) hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001B3u;
  return hash;
}

}  // namespace

PrefixIndex::PrefixIndex(int32_t page_tokens, int32_t num_groups)
    : page_tokens_(page_tokens), num_groups_(num_groups) {}

int32_t PrefixIndex::make_node(int32_t parent, std::span<const int32_t> tokens) {
  if (spare_.empty()) {
    spare_.push_back(static_cast<int32_t>(nodes_.size()));
    nodes_.emplace_back();
  }
  const int32_t index = spare_.back();
  spare_.pop_back();
  Node& node = nodes_[static_cast<size_t>(index)];
  node.parent = parent;
  node.hash = hash_tokens(tokens);
  node.tokens.assign(tokens.begin(), tokens.end());
  node.rows.assign(static_cast<size_t>(num_groups_), kNoRow);
  return index;
}

int32_t PrefixIndex::root(uint64_t key) {
  const auto found = roots_.find(key);
  if (found != roots_.end()) return found->second;
  const int32_t node = make_node(-1, {});
  roots_.emplace(key, node);
  return node;
}

int32_t PrefixIndex::find_child(int32_t node, std::span<const int32_t> tokens) const {
  const auto [begin, end] = at(node).children.equal_range(hash_tokens(tokens));
  for (auto it = begin; it != end; ++it)
    if (std::ranges::equal(at(it->second).tokens, tokens)) return it->second;
  return -1;
}

int32_t PrefixIndex::add_child(int32_t node, std::span<const int32_t> tokens) {
  HW_CHECK(static_cast<int32_t>(tokens.size()) == page_tokens_, "an edge is a page", tokens.size());
  const int32_t child = make_node(node, tokens);
  nodes_[static_cast<size_t>(node)].children.emplace(at(child).hash, child);
  return child;
}

void PrefixIndex::prune(int32_t index) {
  while (at(index).parent >= 0) {
    const Node& node = at(index);
    if (node.pins > 0 || !node.children.empty()) return;
    if (std::ranges::any_of(node.rows, [](RowId row) { return row != kNoRow; })) return;
    const int32_t parent = node.parent;
    auto& siblings = nodes_[static_cast<size_t>(parent)].children;
    auto [begin, end] = siblings.equal_range(node.hash);
    siblings.erase(std::find_if(begin, end, [&](const auto& e) { return e.second == index; }));
    nodes_[static_cast<size_t>(index)] = {};
    spare_.push_back(index);
    index = parent;
  }
}

}  // namespace headwater::kv
