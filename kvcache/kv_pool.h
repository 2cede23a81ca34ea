// KvPool: page rows and who holds them. A page row is one logical page of one group: one page per
// head of the group, and one record per head if the page opens a block of heads that compensate,
// allocated, shared and freed together. Engine thread only.
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

// Page rows to allocate in one group; so many of them with records.
struct RowDemand {
  int64_t rows = 0;
  int64_t records = 0;
  bool operator==(const RowDemand&) const = default;
};

struct PoolCounts {
  int64_t total = 0, free = 0, held = 0, cached = 0;
};

class KvPool {
 public:
  KvPool(const KvGeometry& geometry, int64_t arena_bytes, int64_t superblock_bytes);

  // Whether demand[g] of every group g could be allocated together now.
  bool fits(std::span<const RowDemand> demand) const;
  // Rows of consecutive logical pages; a head's pages lie beside each other where the arena has
  // room, so that who reads one list meets few translations. The caller made sure that they fit.
  // Each has one reader and no records.
  std::vector<RowId> allocate(int32_t group, int64_t num_rows);
  void add_records(int32_t group, RowId row);
  void add_reader(int32_t group, RowId row);
  // The last reader gone: a row of the index becomes cached (the latest used), any other is freed.
  void drop_reader(int32_t group, RowId row);
  int32_t readers(int32_t group, RowId row) const { return at(group, row).readers; }

  // The prefix index takes hold of a row (node >= 0) or lets go of it (frees it if unread).
  void set_node(int32_t group, RowId row, int32_t node);
  int32_t node(int32_t group, RowId row) const { return at(group, row).node; }
  // Cached rows, least recently used first.
  const std::map<uint64_t, RowRef>& cached_rows() const { return cached_; }

  std::span<const PageId> pages(int32_t group, RowId row) const;    // [num_heads]
  std::span<const PageId> records(int32_t group, RowId row) const;  // [num_heads], or empty
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
    bool has_records = false;
  };
  struct Group {
    int32_t page_class = 0, record_class = 0;
    int32_t num_heads = 0;
    int64_t page_bytes = 0, record_bytes = 0;
    std::vector<Row> rows;
    std::vector<PageId> ids;         // [row, head]
    std::vector<PageId> record_ids;  // [row, head] where the heads compensate, else empty
    std::vector<RowId> spare;
    RowDemand live, cached;

    int64_t bytes(const RowDemand& count) const {
      return num_heads * (count.rows * page_bytes + count.records * record_bytes);
    }
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
