#include "kvcache/kv_pool.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace headwater::kv {
namespace {

// Page classes are the distinct page sizes.
std::vector<int64_t> page_classes(const KvGeometry& geometry) {
  std::vector<int64_t> sizes;
  for (const KvGroup& group : geometry.groups())
    if (std::find(sizes.begin(), sizes.end(), group.page.page_bytes()) == sizes.end())
      sizes.push_back(group.page.page_bytes());
  return sizes;
}

}  // namespace

KvPool::KvPool(const KvGeometry& geometry, int64_t arena_bytes, int64_t superblock_bytes)
    : allocator_(arena_bytes, superblock_bytes, page_classes(geometry)) {
  const std::vector<int64_t> sizes = page_classes(geometry);
  for (const KvGroup& group : geometry.groups()) {
    Group& mine = groups_.emplace_back();
    mine.page_bytes = group.page.page_bytes();
    mine.num_heads = group.num_heads;
    mine.page_class = static_cast<int32_t>(std::find(sizes.begin(), sizes.end(), mine.page_bytes) -
                                           sizes.begin());
  }
}

bool KvPool::fits(std::span<const int64_t> rows) const {
  HW_CHECK(rows.size() == groups_.size(), "a count per group", rows.size());
  std::vector<int64_t> pages_per_class(static_cast<size_t>(allocator_.num_classes()), 0);
  for (size_t g = 0; g < groups_.size(); ++g)
    pages_per_class[static_cast<size_t>(groups_[g].page_class)] += rows[g] * groups_[g].num_heads;
  return allocator_.fits(pages_per_class);
}

RowId KvPool::allocate(int32_t group_idx) {
  Group& group = groups_[static_cast<size_t>(group_idx)];
  if (group.spare.empty()) {
    group.spare.push_back(static_cast<RowId>(group.rows.size()));
    group.rows.emplace_back();
    group.ids.resize(group.rows.size() * static_cast<size_t>(group.num_heads));
  }
  const RowId row = group.spare.back();
  group.spare.pop_back();
  const bool allocated = allocator_.allocate(
      group.page_class,
      std::span(group.ids).subspan(static_cast<size_t>(row) * static_cast<size_t>(group.num_heads),
                                   static_cast<size_t>(group.num_heads)));
  HW_CHECK(allocated, "allocate() without fits(), group", group_idx);
  group.rows[static_cast<size_t>(row)] = {.readers = 1, .node = -1, .stamp = 0, .live = true};
  ++group.live;
  return row;
}

void KvPool::add_reader(int32_t group, RowId row) {
  if (at(group, row).readers++ == 0) set_cached(group, row, false);
}

void KvPool::drop_reader(int32_t group, RowId row) {
  Row& r = at(group, row);
  HW_CHECK(r.live && r.readers > 0, "a row without readers is dropped", group, row);
  if (--r.readers > 0) return;
  if (r.node >= 0) {
    set_cached(group, row, true);
  } else {
    free_row(group, row);
  }
}

void KvPool::set_node(int32_t group, RowId row, int32_t node) {
  Row& r = at(group, row);
  HW_CHECK((r.node < 0) != (node < 0), "a row belongs to one node", r.node, node);
  r.node = node;
  if (node >= 0 || r.readers > 0) return;
  set_cached(group, row, false);
  free_row(group, row);
}

void KvPool::set_cached(int32_t group, RowId row, bool cached) {
  Row& r = at(group, row);
  if (cached == (r.stamp != 0)) return;
  groups_[static_cast<size_t>(group)].cached += cached ? 1 : -1;
  if (cached) {
    r.stamp = next_stamp_++;
    cached_.emplace(r.stamp, RowRef{group, row});
  } else {
    cached_.erase(r.stamp);
    r.stamp = 0;
  }
}

void KvPool::free_row(int32_t group_idx, RowId row) {
  Group& group = groups_[static_cast<size_t>(group_idx)];
  allocator_.free(group.page_class, pages(group_idx, row));
  group.rows[static_cast<size_t>(row)] = {};
  group.spare.push_back(row);
  --group.live;
}

std::span<const PageId> KvPool::pages(int32_t group_idx, RowId row) const {
  const Group& group = groups_[static_cast<size_t>(group_idx)];
  return std::span(group.ids).subspan(
      static_cast<size_t>(row) * static_cast<size_t>(group.num_heads),
      static_cast<size_t>(group.num_heads));
}

PoolCounts KvPool::page_counts() const {
  PoolCounts counts;
  int64_t used = 0;
  for (const Group& group : groups_) {
    counts.cached += group.cached * group.num_heads;
    used += group.live * group.num_heads;
  }
  counts.held = used - counts.cached;
  // Of several page sizes the smallest says how many pages the free bytes make.
  int64_t smallest = groups_[0].page_bytes;
  for (const Group& group : groups_) smallest = std::min(smallest, group.page_bytes);
  counts.free = allocator_.free_bytes() / smallest;
  counts.total = counts.free + used;
  return counts;
}

PoolCounts KvPool::byte_counts() const {
  PoolCounts counts;
  counts.total = allocator_.total_bytes() - allocator_.slack_bytes();
  counts.free = allocator_.free_bytes();
  for (const Group& group : groups_)
    counts.cached += group.cached * group.num_heads * group.page_bytes;
  counts.held = allocator_.used_bytes() - counts.cached;
  return counts;
}

int64_t KvPool::held_rows(int32_t group) const {
  const Group& g = groups_[static_cast<size_t>(group)];
  return g.live - g.cached;
}

void KvPool::check() const {
  allocator_.check();
  int64_t live_bytes = 0;
  size_t cached_rows = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    int64_t live = 0, cached = 0;
    for (const Row& row : groups_[g].rows) {
      if (!row.live) continue;
      ++live;
      const bool is_cached = row.readers == 0;
      cached += is_cached;
      HW_CHECK(!is_cached || row.node >= 0, "a live row that nobody holds, group", g);
      HW_CHECK(is_cached == (row.stamp != 0), "cached rows are in the eviction order, group", g);
    }
    HW_CHECK(live == groups_[g].live && cached == groups_[g].cached, "row counts of group", g);
    live_bytes += live * groups_[g].num_heads * groups_[g].page_bytes;
    cached_rows += static_cast<size_t>(cached);
  }
  HW_CHECK(live_bytes == allocator_.used_bytes(), "live rows and used bytes", live_bytes);
  HW_CHECK(cached_rows == cached_.size(), "eviction order", cached_rows);
  const PoolCounts bytes = byte_counts();
  HW_CHECK(bytes.free + bytes.held + bytes.cached == bytes.total, "conservation", bytes.total);
}

}  // namespace headwater::kv
