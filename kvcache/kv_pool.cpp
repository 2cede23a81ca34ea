#include "kvcache/kv_pool.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace headwater::kv {
namespace {

// Page classes are the distinct sizes of pages and of records.
std::vector<int64_t> page_classes(const KvGeometry& geometry) {
  std::vector<int64_t> sizes;
  const auto add = [&](int64_t bytes) {
    if (std::find(sizes.begin(), sizes.end(), bytes) == sizes.end()) sizes.push_back(bytes);
  };
  for (const KvGroup& group : geometry.groups()) {
    add(group.page.page_bytes());
    if (group.rule.compensate) add(record_bytes(group.page));
  }
  return sizes;
}

// Rows of which so many have records.
void count(RowDemand& demand, bool has_records, int64_t rows = 1) {
  demand.rows += rows;
  if (has_records) demand.records += rows;
}

}  // namespace

KvPool::KvPool(const KvGeometry& geometry, int64_t arena_bytes, int64_t superblock_bytes)
    : allocator_(arena_bytes, superblock_bytes, page_classes(geometry)) {
  const std::vector<int64_t> sizes = page_classes(geometry);
  const auto class_of = [&](int64_t bytes) {
    return static_cast<int32_t>(std::find(sizes.begin(), sizes.end(), bytes) - sizes.begin());
  };
  for (const KvGroup& group : geometry.groups()) {
    Group& mine = groups_.emplace_back();
    mine.num_heads = group.num_heads;
    mine.page_bytes = group.page.page_bytes();
    mine.page_class = class_of(mine.page_bytes);
    if (!group.rule.compensate) continue;
    mine.record_bytes = record_bytes(group.page);
    mine.record_class = class_of(mine.record_bytes);
  }
}

bool KvPool::fits(std::span<const RowDemand> demand) const {
  HW_CHECK(demand.size() == groups_.size(), "a count per group", demand.size());
  std::vector<int64_t> pages_per_class(static_cast<size_t>(allocator_.num_classes()), 0);
  for (size_t g = 0; g < groups_.size(); ++g) {
    const Group& group = groups_[g];
    pages_per_class[static_cast<size_t>(group.page_class)] += demand[g].rows * group.num_heads;
    pages_per_class[static_cast<size_t>(group.record_class)] += demand[g].records * group.num_heads;
  }
  return allocator_.fits(pages_per_class);
}

std::vector<RowId> KvPool::allocate(int32_t group_idx, int64_t num_rows) {
  Group& group = groups_[static_cast<size_t>(group_idx)];
  const auto heads = static_cast<size_t>(group.num_heads), count = static_cast<size_t>(num_rows);
  std::vector<PageId> pages(count * heads);  // [head, row]
  HW_CHECK(allocator_.allocate(group.page_class, pages), "allocate() without fits()", group_idx);
  std::vector<RowId> rows(count);
  for (size_t i = 0; i < count; ++i) {
    if (group.spare.empty()) {
      group.spare.push_back(static_cast<RowId>(group.rows.size()));
      group.rows.emplace_back();
      group.ids.resize(group.rows.size() * heads);
      if (group.record_bytes > 0) group.record_ids.resize(group.ids.size());
    }
    rows[i] = group.spare.back();
    group.spare.pop_back();
    group.rows[static_cast<size_t>(rows[i])] = {.readers = 1, .live = true};
    for (size_t head = 0; head < heads; ++head)
      group.ids[static_cast<size_t>(rows[i]) * heads + head] = pages[head * count + i];
  }
  group.live.rows += num_rows;
  return rows;
}

void KvPool::add_records(int32_t group_idx, RowId row) {
  Group& group = groups_[static_cast<size_t>(group_idx)];
  const auto heads = static_cast<size_t>(group.num_heads);
  const auto ids = std::span(group.record_ids).subspan(static_cast<size_t>(row) * heads, heads);
  HW_CHECK(allocator_.allocate(group.record_class, ids), "add_records() without fits()", group_idx);
  at(group_idx, row).has_records = true;
  ++group.live.records;
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
  count(groups_[static_cast<size_t>(group)].cached, r.has_records, cached ? 1 : -1);
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
  const bool has_records = at(group_idx, row).has_records;
  allocator_.free(group.page_class, pages(group_idx, row));
  if (has_records) allocator_.free(group.record_class, records(group_idx, row));
  group.rows[static_cast<size_t>(row)] = {};
  group.spare.push_back(row);
  count(group.live, has_records, -1);
}

std::span<const PageId> KvPool::pages(int32_t group_idx, RowId row) const {
  const Group& group = groups_[static_cast<size_t>(group_idx)];
  return std::span(group.ids).subspan(
      static_cast<size_t>(row) * static_cast<size_t>(group.num_heads),
      static_cast<size_t>(group.num_heads));
}

std::span<const PageId> KvPool::records(int32_t group_idx, RowId row) const {
  if (!at(group_idx, row).has_records) return {};
  const Group& group = groups_[static_cast<size_t>(group_idx)];
  const auto heads = static_cast<size_t>(group.num_heads);
  return std::span(group.record_ids).subspan(static_cast<size_t>(row) * heads, heads);
}

PoolCounts KvPool::page_counts() const {
  PoolCounts counts;
  int64_t used = 0;
  for (const Group& group : groups_) {
    counts.cached += group.cached.rows * group.num_heads;
    used += group.live.rows * group.num_heads;
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
  for (const Group& group : groups_) counts.cached += group.bytes(group.cached);
  counts.held = allocator_.used_bytes() - counts.cached;
  return counts;
}

int64_t KvPool::held_rows(int32_t group) const {
  const Group& g = groups_[static_cast<size_t>(group)];
  return g.live.rows - g.cached.rows;
}

void KvPool::check() const {
  allocator_.check();
  int64_t live_bytes = 0;
  size_t cached_rows = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    RowDemand live, cached;
    for (const Row& row : groups_[g].rows) {
      if (!row.live) continue;
      count(live, row.has_records);
      const bool is_cached = row.readers == 0;
      if (is_cached) count(cached, row.has_records);
      HW_CHECK(!is_cached || row.node >= 0, "a live row that nobody holds, group", g);
      HW_CHECK(is_cached == (row.stamp != 0), "cached rows are in the eviction order, group", g);
    }
    HW_CHECK(live == groups_[g].live && cached == groups_[g].cached, "row counts of group", g);
    live_bytes += groups_[g].bytes(live);
    cached_rows += static_cast<size_t>(cached.rows);
  }
  HW_CHECK(live_bytes == allocator_.used_bytes(), "live rows and used bytes", live_bytes);
  HW_CHECK(cached_rows == cached_.size(), "eviction order", cached_rows);
  const PoolCounts bytes = byte_counts();
  HW_CHECK(bytes.free + bytes.held + bytes.cached == bytes.total, "conservation", bytes.total);
}

}  // namespace headwater::kv
