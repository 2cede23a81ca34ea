// PageAllocator: ids of pages of several classes (sizes) over one arena. Knows no bytes' meaning.
// Engine thread only.
//
//   arena  | superblock 0 | superblock 1 | superblock 2 | ...      fixed size, say 2 MiB
//            class A pages   free           class B pages
//
// A superblock serves one class at a time and returns to the common pool when its last page is
// free, so bytes freed by one class serve any other. free + used + slack == total, in bytes, where
// slack is what the page size leaves over at the end of a superblock in use.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/paged_kv.h"

namespace headwater::kv {

class PageAllocator {
 public:
  // page_bytes: one per class, multiples of kPageGranuleBytes, at most superblock_bytes.
  PageAllocator(int64_t arena_bytes, int64_t superblock_bytes, std::vector<int64_t> page_bytes);

  // All or nothing: fills out and returns true, or changes nothing and returns false.
  bool allocate(int32_t page_class, std::span<PageId> out);
  void free(int32_t page_class, std::span<const PageId> pages);

  // Pages of this class that allocate() could hand out now.
  int64_t available(int32_t page_class) const;
  // Whether these counts, one per class, could all be handed out together.
  bool fits(std::span<const int64_t> counts) const;

  int32_t num_classes() const { return static_cast<int32_t>(classes_.size()); }
  int64_t total_bytes() const { return num_superblocks() * superblock_bytes_; }
  int64_t used_bytes() const;
  int64_t slack_bytes() const;
  int64_t free_bytes() const { return total_bytes() - used_bytes() - slack_bytes(); }
  int64_t used_pages(int32_t page_class) const { return class_at(page_class).used_pages; }
  int64_t total_pages(int32_t page_class) const {
    return num_superblocks() * class_at(page_class).pages_per_superblock;
  }
  // Recounts everything; aborts on a contradiction.
  void check() const;

 private:
  struct Superblock {
    int32_t page_class = -1;          // -1: in the common pool
    int32_t position = -1;            // in its class's `open` list, -1 if full
    std::vector<int32_t> free_slots;  // page indices within the superblock
  };
  struct PageClass {
    int64_t page_bytes = 0;
    int64_t pages_per_superblock = 0;
    int64_t num_superblocks = 0;
    int64_t used_pages = 0;
    std::vector<int32_t> open;  // superblocks with a free page
  };

  int64_t num_superblocks() const { return static_cast<int64_t>(superblocks_.size()); }
  const PageClass& class_at(int32_t c) const { return classes_[static_cast<size_t>(c)]; }
  int64_t free_in_own(const PageClass& c) const {
    return c.num_superblocks * c.pages_per_superblock - c.used_pages;
  }
  PageId id_of(int32_t superblock, int32_t slot, const PageClass& c) const;
  void open_superblock(PageClass& c, int32_t superblock);
  void close_superblock(PageClass& c, int32_t superblock);

  int64_t superblock_bytes_;
  std::vector<Superblock> superblocks_;
  std::vector<PageClass> classes_;
  std::vector<int32_t> pool_;  // superblocks of no class
};

}  // namespace headwater::kv
