// PrefixIndex: a radix tree over token ids with one page per edge: it finds the page rows of a
// prefix that somebody computed before. It owns nodes, not pages: KvPool does. Engine thread only.
//
//   root(key) -- tokens 0..15 --> node {row of group 0, row of group 1, ...} -- tokens 16..31 -->
//   ...
//
// A node may lack the rows of groups that dropped that page (kNoRow). Roots are kept apart by a
// key, for K and V that the same tokens do not make equal (another retention policy).
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kvcache/kv_pool.h"

namespace headwater::kv {

class PrefixIndex {
 public:
  PrefixIndex(int32_t page_tokens, int32_t num_groups);

  int32_t root(uint64_t key);
  // The child of node that these page_tokens tokens lead to; -1 if there is none.
  int32_t find_child(int32_t node, std::span<const int32_t> tokens) const;
  int32_t add_child(int32_t node, std::span<const int32_t> tokens);
  // A pinned node stays, rows or not: a sequence goes on from there.
  void pin(int32_t node) { ++nodes_[static_cast<size_t>(node)].pins; }
  void unpin(int32_t node) {
    --nodes_[static_cast<size_t>(node)].pins;
    prune(node);
  }
  // A node without pins, children and rows leaves the tree, and so do ancestors it leaves bare.
  void prune(int32_t node);

  RowId row(int32_t node, int32_t group) const { return at(node).rows[static_cast<size_t>(group)]; }
  void set_row(int32_t node, int32_t group, RowId row) {
    nodes_[static_cast<size_t>(node)].rows[static_cast<size_t>(group)] = row;
  }
  bool has_children(int32_t node) const { return !at(node).children.empty(); }
  int64_t num_nodes() const { return static_cast<int64_t>(nodes_.size() - spare_.size()); }

 private:
  struct Node {
    int32_t parent = -1;
    int32_t pins = 0;
    uint64_t hash = 0;            // of tokens: the key in the parent's children
    std::vector<int32_t> tokens;  // [page_tokens]; the root has none
    std::vector<RowId> rows;      // [num_groups]
    std::unordered_multimap<uint64_t, int32_t> children;
  };

  const Node& at(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }
  int32_t make_node(int32_t parent, std::span<const int32_t> tokens);

  int32_t page_tokens_;
  int32_t num_groups_;
  std::vector<Node> nodes_;
  std::vector<int32_t> spare_;
  std::unordered_map<uint64_t, int32_t> roots_;
};

}  // namespace headwater::kv
