#include "kvcache/page_allocator.h"

#include <numeric>

#include "kernels/base/check.h"

namespace headwater::kv {

PageAllocator::PageAllocator(int64_t arena_bytes,
                             int64_t superblock_bytes,
                             std::vector<int64_t> page_bytes)
    : superblock_bytes_(superblock_bytes) {
  HW_CHECK(superblock_bytes % kPageGranuleBytes == 0, "superblock size", superblock_bytes);
  for (int64_t bytes : page_bytes) {
    HW_CHECK(bytes > 0 && bytes % kPageGranuleBytes == 0 && bytes <= superblock_bytes,
             "page size",
             bytes);
    classes_.push_back({bytes, superblock_bytes / bytes, 0, 0, {}});
  }
  superblocks_.resize(static_cast<size_t>(arena_bytes / superblock_bytes));
  for (int64_t i = num_superblocks(); i-- > 0;) pool_.push_back(static_cast<int32_t>(i));
}

PageId PageAllocator::id_of(int32_t superblock, int32_t slot, const PageClass& c) const {
  return static_cast<PageId>((superblock * superblock_bytes_ + slot * c.page_bytes) /
                             kPageGranuleBytes);
}

void PageAllocator::open_superblock(PageClass& c, int32_t superblock) {
  superblocks_[static_cast<size_t>(superblock)].position = static_cast<int32_t>(c.open.size());
  c.open.push_back(superblock);
}

void PageAllocator::close_superblock(PageClass& c, int32_t superblock) {
  const int32_t position = superblocks_[static_cast<size_t>(superblock)].position;
  const int32_t moved = c.open.back();
  c.open[static_cast<size_t>(position)] = moved;
  superblocks_[static_cast<size_t>(moved)].position = position;
  c.open.pop_back();
  superblocks_[static_cast<size_t>(superblock)].position = -1;
}

int64_t PageAllocator::available(int32_t page_class) const {
  const PageClass& c = class_at(page_class);
  return free_in_own(c) + static_cast<int64_t>(pool_.size()) * c.pages_per_superblock;
}

bool PageAllocator::fits(std::span<const int64_t> counts) const {
  int64_t superblocks = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const PageClass& c = classes_[i];
    const int64_t missing = counts[i] - free_in_own(c);
    if (missing > 0) superblocks += (missing + c.pages_per_superblock - 1) / c.pages_per_superblock;
  }
  return superblocks <= static_cast<int64_t>(pool_.size());
}

bool PageAllocator::allocate(int32_t page_class, std::span<PageId> out) {
  if (available(page_class) < static_cast<int64_t>(out.size())) return false;
  PageClass& c = classes_[static_cast<size_t>(page_class)];
  for (PageId& id : out) {
    if (c.open.empty()) {
      const int32_t fresh = pool_.back();
      pool_.pop_back();
      Superblock& block = superblocks_[static_cast<size_t>(fresh)];
      block.page_class = page_class;
      block.free_slots.resize(static_cast<size_t>(c.pages_per_superblock));
      std::iota(block.free_slots.rbegin(), block.free_slots.rend(), 0);
      ++c.num_superblocks;
      open_superblock(c, fresh);
    }
    const int32_t index = c.open.back();
    Superblock& block = superblocks_[static_cast<size_t>(index)];
    id = id_of(index, block.free_slots.back(), c);
    block.free_slots.pop_back();
    ++c.used_pages;
    if (block.free_slots.empty()) close_superblock(c, index);
  }
  return true;
}

void PageAllocator::free(int32_t page_class, std::span<const PageId> pages) {
  PageClass& c = classes_[static_cast<size_t>(page_class)];
  for (PageId id : pages) {
    const int64_t offset = id * kPageGranuleBytes;
    const auto index = static_cast<int32_t>(offset / superblock_bytes_);
    Superblock& block = superblocks_[static_cast<size_t>(index)];
    HW_CHECK(block.page_class == page_class, "page freed into another class", id);
    if (block.free_slots.empty()) open_superblock(c, index);
    block.free_slots.push_back(static_cast<int32_t>(offset % superblock_bytes_ / c.page_bytes));
    --c.used_pages;
    if (static_cast<int64_t>(block.free_slots.size()) == c.pages_per_superblock) {
      close_superblock(c, index);
      block.page_class = -1;
      --c.num_superblocks;
      pool_.push_back(index);
    }
  }
}

int64_t PageAllocator::used_bytes() const {
  int64_t bytes = 0;
  for (const PageClass& c : classes_) bytes += c.used_pages * c.page_bytes;
  return bytes;
}

int64_t PageAllocator::slack_bytes() const {
  int64_t bytes = 0;
  for (const PageClass& c : classes_)
    bytes += c.num_superblocks * (superblock_bytes_ - c.pages_per_superblock * c.page_bytes);
  return bytes;
}

void PageAllocator::check() const {
  std::vector<int64_t> used(classes_.size(), 0);
  std::vector<int64_t> owned(classes_.size(), 0);
  int64_t pooled = 0;
  for (const Superblock& block : superblocks_) {
    if (block.page_class < 0) {
      ++pooled;
      continue;
    }
    const auto c = static_cast<size_t>(block.page_class);
    ++owned[c];
    used[c] += classes_[c].pages_per_superblock - static_cast<int64_t>(block.free_slots.size());
    HW_CHECK((block.position >= 0) == !block.free_slots.empty(), "open list");
  }
  HW_CHECK(pooled == static_cast<int64_t>(pool_.size()), "superblocks in the pool", pooled);
  for (size_t c = 0; c < classes_.size(); ++c) {
    HW_CHECK(used[c] == classes_[c].used_pages, "used pages of class", c, used[c]);
    HW_CHECK(owned[c] == classes_[c].num_superblocks, "superblocks of class", c, owned[c]);
  }
}

}  // namespace headwater::kv
