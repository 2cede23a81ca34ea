#include <catch2/catch.hpp>
#include <random>
#include <set>

#include "kvcache/page_allocator.h"

using headwater::kPageGranuleBytes;
using headwater::PageId;
using headwater::kv::PageAllocator;

TEST_CASE("PageAllocator: a superblock serves one class and comes back when empty",
          "[kvcache][unit]") {
  PageAllocator pages(4 * 4096, 4096, {1024, 1536});
  REQUIRE(pages.available(0) == 16);
  REQUIRE(pages.available(1) == 8);

  std::vector<PageId> small(5);
  REQUIRE(pages.allocate(0, small));
  REQUIRE(pages.available(0) == 11);
  REQUIRE(pages.available(1) == 4);
  REQUIRE(pages.used_bytes() == 5 * 1024);
  REQUIRE(pages.fits(std::vector<int64_t>{11, 0}));
  REQUIRE(pages.fits(std::vector<int64_t>{3, 4}));
  REQUIRE_FALSE(pages.fits(std::vector<int64_t>{4, 4}));

  std::vector<PageId> large(5);
  REQUIRE_FALSE(pages.allocate(1, large));
  REQUIRE(pages.available(1) == 4);
  large.resize(4);
  REQUIRE(pages.allocate(1, large));
  REQUIRE(pages.slack_bytes() == 2 * 1024);
  REQUIRE(pages.free_bytes() + pages.used_bytes() + pages.slack_bytes() == pages.total_bytes());

  pages.free(0, small);
  REQUIRE(pages.available(1) == 4);
  pages.free(1, large);
  REQUIRE(pages.available(0) == 16);
  REQUIRE(pages.slack_bytes() == 0);
  pages.check();
}

TEST_CASE("PageAllocator: pages never overlap under random traffic", "[kvcache][unit]") {
  constexpr int64_t kSizes[] = {512, 768, 2048};
  PageAllocator pages(16 * 8192, 8192, {512, 768, 2048});
  std::vector<std::vector<PageId>> held[3];
  std::vector<int> owner(16 * 8192 / kPageGranuleBytes, -1);
  std::mt19937 random(7);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    const int c = static_cast<int>(random() % 3);
    if (random() % 2 == 0 && !held[c].empty()) {
      std::swap(held[c][random() % held[c].size()], held[c].back());
      for (PageId id : held[c].back())
        for (int64_t g = 0; g < kSizes[c] / kPageGranuleBytes; ++g)
          owner[static_cast<size_t>(id + g)] = -1;
      pages.free(c, held[c].back());
      held[c].pop_back();
    } else {
      std::vector<PageId> ids(1 + random() % 4);
      if (!pages.allocate(c, ids)) {
        ++refused;
        continue;
      }
      for (PageId id : ids)
        for (int64_t g = 0; g < kSizes[c] / kPageGranuleBytes; ++g) {
          REQUIRE(owner.at(static_cast<size_t>(id + g)) == -1);
          owner[static_cast<size_t>(id + g)] = c;
        }
      held[c].push_back(std::move(ids));
    }
    if (round % 500 == 0) pages.check();
  }
  REQUIRE(refused > 0);
}
