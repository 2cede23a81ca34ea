// KvPool: page rows and who holds them. A page row is one logical page of one group: one page per
// head of the group, allocated, shared and freed together. Engine thread only.
//
// A row is   free    not allocated
//            held    read by `readers` sequences
//            cached  read by none, but found by the prefix index: may be evicted any time
// and in pages as in bytes  free + held + cached == total  (bytes: + slack of started superblocks).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kvcache/kv_geometry.h"
#include "kvcache/page_allocator.h"

namespace headwater::kv {

using RowId = int32_t;
constexpr RowId kNoRow = -1;

struct RowRef {
  int32_t group = 0;
  RowId row = kNoRow;
};

struct PoolCounts {
  int64_t total = 0, free = 0, held = 0, cached = 0;
};

class KvPool {
 public:
  KvPool(const KvGeometry& geometry, int64_t arena_bytes, int64_t superblock_bytes);

  // Whether rows[g] rows of every group g could be allocated together now.
  bool fits(std::span<const int64_t> rows) const;
  // The caller made sure that it fits. The new row has one reader.
  RowId allocate(int32_t group);
  void add_reader(int32_t group, RowId row);
  // The last reader gone: a row of the index becomes cached (the latest used), any other is freed.
  void drop_reader(int32_t group, RowId row);
  int32_t readers(int32_t group, RowId row) const { return at(group, row).readers; }

  // The prefix index takes hold of a row (node >= 0) or lets go of it (frees it if unread).
  void set_node(int32_t group, RowId row, int32_t node);
  int32_t node(int32_t group, RowId row) const { return at(group, row).node; }
  // Cached rows, least recently used first.
  const std::map<uint64_t, RowRef>& cached_rows() const { return cached_; }

  std::span<const PageId> pages(int32_t group, RowId row) const;
  PoolCounts page_counts() const;
  PoolCounts byte_counts() const;
  int64_t slack_bytes() const { return allocator_.slack_bytes(); }
  int64_t held_rows(int32_t group) const;
  void check() const;

 private:
  struct Row {
    int32_t readers = 0;
    int32_t node = -1;   // of the prefix index
    uint64_t stamp = 0;  // key in cached_, 0 = not cached
    bool live = false;
  };
  struct Group {
    int32_t page_class = 0;
    int32_t num_heads = 0;
    int64_t page_bytes = 0;
    std::vector<Row> rows;
    std::vector<PageId> ids;  // [row, head]
    std::vector<RowId> spare;
    int64_t live = 0, cached = 0;
  };

  const Row& at(int32_t group, RowId row) const {
    return groups_[static_cast<size_t>(group)].rows[static_cast<size_t>(row)];
  }
  Row& at(int32_t group, RowId row) {
    return groups_[static_cast<size_t>(group)].rows[static_cast<size_t>(row)];
  }
  void set_cached(int32_t group, RowId row, bool cached);
  void free_row(int32_t group, RowId row);

  std::vector<Group> groups_;
  PageAllocator allocator_;
  std::map<uint64_t, RowRef> cached_;
  uint64_t next_stamp_ = 1;
};

}  // namespace headwater::kv
