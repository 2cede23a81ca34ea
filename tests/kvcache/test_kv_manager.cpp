#include <catch2/catch.hpp>
#include <deque>
#include <numeric>
#include <random>

#include "kvcache/kv_manager.h"

using namespace headwater;      // NOLINT: test
using namespace headwater::kv;  // NOLINT: test

namespace {

constexpr PageShape kPage{DType::kF32, 8, 16, 0};  // 1,024 bytes
constexpr RetentionRule kFull{};
constexpr RetentionRule kWindow{4, 40};
// A quarter of the context, at least 40; folds by 32.
constexpr RetentionRule kRazor{.sink_tokens = 4,
                               .recent_tokens = 40,
                               .growth_ppm = 250'000,
                               .block_tokens = 32,
                               .compensate = true};
constexpr RetentionRule kShard{
    .recent_tokens = 33, .block_tokens = 32, .shard_stride = 4, .shard_phase = 1};

// 2 layers x 2 heads; `window_heads` of the four keep by the rule.
KvGeometry geometry(int window_heads, const RetentionRule& rule = kWindow) {
  std::vector<RetentionRule> rules(4, kFull);
  for (int i = 0; i < window_heads; ++i) rules[static_cast<size_t>(i)] = rule;
  return KvGeometry(2, 2, rules, kPage);
}

KvManager::Options options(int64_t num_pages, int32_t max_sequences = 8) {
  return {.arena_bytes = num_pages * 1024,
          .superblock_bytes = 2048,
          .max_sequences = max_sequences,
          .max_tokens = 2048,
          .prefix_caching = true};
}

std::vector<int32_t> tokens(int count, int seed = 0) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) ids[static_cast<size_t>(i)] = (i * 7 + seed * 1000) % 5000;
  return ids;
}

void advance(KvManager& kv, SequenceKv& seq, const std::vector<int32_t>& ids) {
  REQUIRE(kv.reserve(seq, static_cast<int32_t>(ids.size())));
  kv.commit(seq, ids);
}

}  // namespace

TEST_CASE("KvGeometry: equal rules make one group and one function says the cost",
          "[kvcache][unit]") {
  const KvGeometry dense = geometry(0);
  REQUIRE(dense.num_groups() == 1);
  REQUIRE(dense.bytes_for(17, false) == 2 * 4 * 1024);
  const KvGeometry mixed = geometry(3);
  REQUIRE(mixed.num_groups() == 2);
  REQUIRE(mixed.groups()[0].num_heads == 3);
  REQUIRE(mixed.heads()[3].group == 1);
  REQUIRE(mixed.heads()[2].slot == 2);
  // 1,000 tokens: 63 pages; the row at 1,000 sees 961..1000: pages 60..62, and the sink page.
  REQUIRE(mixed.group_bytes_for(0, 1000, false) == 3 * 4 * 1024);
  REQUIRE(mixed.group_bytes_for(0, 1000, true) == 3 * 63 * 1024);
  REQUIRE(mixed.bytes_for(1000, false) == (3 * 4 + 63) * 1024);
}

TEST_CASE("RetentionRule: the frontier never moves back and windows grow as stated",
          "[kvcache][unit]") {
  REQUIRE(kRazor.recent(100) == 40);
  REQUIRE(kRazor.recent(1000) == 250);
  REQUIRE(kRazor.window_start(999) == 736);  // 750, by whole blocks
  const RetentionRule moa{
      .sink_tokens = 64, .recent_tokens = 128, .growth_ppm = 125'000, .growth_offset = -64};
  REQUIRE(moa.recent(800) == 128);
  REQUIRE(moa.recent(8000) == 936);
  for (const RetentionRule& rule : {kWindow, kRazor, kShard, moa}) {
    int32_t frontier = 0;
    for (int32_t position = 0; position < 5000; ++position) {
      const int32_t start = rule.window_start(position);
      REQUIRE(start >= frontier);
      REQUIRE(start % rule.block_tokens == 0);
      REQUIRE(position + 1 - start >= std::min<int64_t>(position + 1, rule.recent(position + 1)));
      frontier = start;
    }
  }
}

TEST_CASE("KvGeometry: shards of enough heads cover every block; records cost what they say",
          "[kvcache][unit]") {
  std::vector<RetentionRule> rules(4, kShard);
  for (int32_t h = 0; h < 4; ++h) rules[static_cast<size_t>(h)].shard_phase = h;
  const KvGeometry shards(2, 2, rules, kPage);
  for (int32_t page = 0; page < 64; ++page) {
    int kept = 0;
    for (int32_t g = 0; g < 4; ++g) kept += shards.keeps_page(g, page, 1 << 20);
    REQUIRE(kept == 1);
  }
  // 1,000 tokens of kRazor: window from 736: pages 46..62, and page 0 (sinks, rounded up); records
  // of blocks 23..31, 256 bytes a head.
  const KvGeometry razor = geometry(4, kRazor);
  REQUIRE(razor.groups()[0].rule.sink_tokens == 16);
  REQUIRE(razor.bytes_for(1000, false) == 4 * (18 * 1024 + 9 * 256));
  REQUIRE(razor.bytes_for(1000, true) == 4 * (63 * 1024 + 31 * 256));
}

TEST_CASE("KvManager: held bytes are what the geometry says, and come back", "[kvcache][unit]") {
  const int window_heads = GENERATE(0, 2, 3, 4);
  const int chunk = GENERATE(1, 7, 16, 33, 500);
  const RetentionRule rule = GENERATE(kWindow, kRazor, kShard);
  KvManager kv(geometry(window_heads, rule), options(400));
  SequenceKv seq = kv.create({.share_prefix = false});
  const std::vector<int32_t> all = tokens(700);
  for (int end = chunk; end <= 700; end += chunk) {
    advance(kv, seq, {all.begin(), all.begin() + end});
    const SequenceKv* live[] = {&seq};
    kv.check(live);
    REQUIRE(kv.held_bytes(seq) == kv.geometry().bytes_for(end, false));
    REQUIRE(kv.byte_counts().held == kv.held_bytes(seq));
  }
  kv.release(seq);
  REQUIRE(kv.byte_counts().free == kv.byte_counts().total);
}

TEST_CASE("KvManager: pages that a window dropped are taken by another sequence",
          "[kvcache][unit]") {
  // Four window heads need 4 rows of 4 pages for a long sequence; dense would need 44 rows.
  KvManager kv(geometry(4), options(2 * 6 * 4));
  SequenceKv a = kv.create({.share_prefix = false});
  SequenceKv b = kv.create({.share_prefix = false});
  const std::vector<int32_t> all = tokens(700);
  for (int end = 16; end <= 700; end += 16) {
    advance(kv, a, {all.begin(), all.begin() + end});
    advance(kv, b, {all.begin(), all.begin() + end});
  }
  SequenceKv dense = kv.create({.dense = true, .share_prefix = false});
  REQUIRE_FALSE(kv.reserve(dense, 700));
  kv.release(dense);
  const SequenceKv* live[] = {&a, &b};
  kv.check(live);
}

TEST_CASE("KvManager: pages reserved together lie beside each other, head by head",
          "[kvcache][unit]") {
  KvManager kv(geometry(2), options(64));
  SequenceKv seq = kv.create({});
  constexpr int32_t kPages = 5;
  advance(kv, seq, tokens(kPages * 16));  // of which the second group keeps all
  for (int32_t g = 0; g < 2; ++g) {
    const int32_t* ids = kv.tables() + kv.table_begin(seq.table_slot(), g);
    const int32_t num_heads = kv.geometry().groups()[static_cast<size_t>(g)].num_heads;
    for (int32_t head = 0; head < num_heads; ++head)
      for (int32_t page = 1; page < kPages; ++page) {
        CAPTURE(g, head, page);
        if (ids[page * num_heads] == kNoPage || ids[(page - 1) * num_heads] == kNoPage) continue;
        CHECK(ids[page * num_heads + head] - ids[(page - 1) * num_heads + head] ==
              kPage.page_bytes() / kPageGranuleBytes);
      }
  }
  kv.release(seq);
}

TEST_CASE("KvManager: a prefix is adopted in whole pages and shared by reference",
          "[kvcache][unit]") {
  KvManager kv(geometry(0), options(200));
  SequenceKv a = kv.create({});
  REQUIRE(kv.adopt(a, tokens(100), 99) == 0);
  advance(kv, a, tokens(100));
  SequenceKv b = kv.create({});
  REQUIRE(kv.adopt(b, tokens(100), 99) == 96);
  REQUIRE(kv.byte_counts().held == kv.held_bytes(a));
  SequenceKv c = kv.create({});
  std::vector<int32_t> other = tokens(100);
  other[50] = -5;
  REQUIRE(kv.adopt(c, other, 99) == 48);
  advance(kv, c, other);
  kv.release(a);
  kv.release(b);
  kv.release(c);
  REQUIRE(kv.byte_counts().held == 0);
  REQUIRE(kv.byte_counts().cached == (6 + 3) * 4 * 1024);
  kv.check({});
  SequenceKv d = kv.create({});
  REQUIRE(kv.adopt(d, tokens(100), 90) == 80);
  kv.release(d);
}

TEST_CASE("KvManager: two that compute the same page keep one copy", "[kvcache][unit]") {
  KvManager kv(geometry(2), options(200));
  SequenceKv a = kv.create({});
  SequenceKv b = kv.create({});
  advance(kv, a, tokens(40));
  advance(kv, b, tokens(40));
  const SequenceKv* live[] = {&a, &b};
  kv.check(live);
  REQUIRE(kv.byte_counts().held == (2 + 1 + 1) * 4 * 1024);  // two shared pages, two open ones
  kv.release(a);
  advance(kv, b, tokens(80));
  kv.release(b);
  kv.check({});
}

TEST_CASE("KvManager: window heads resume from a snapshot at a page boundary", "[kvcache][unit]") {
  KvManager kv(geometry(2), options(400));
  SequenceKv a = kv.create({});
  advance(kv, a, tokens(320));
  const std::vector<int32_t> longer = tokens(600);
  SequenceKv b = kv.create({});
  REQUIRE(kv.adopt(b, longer, 599) == 320);
  REQUIRE(kv.held_bytes(b) == kv.geometry().bytes_for(320, false));
  // Its windows dropped pages long ago, but they are cached: a fork of the text half way resumes.
  std::vector<int32_t> half = tokens(320);
  half[170] = -1;
  SequenceKv c = kv.create({});
  REQUIRE(kv.adopt(c, half, 319) == 160);
  const SequenceKv* live[] = {&a, &b, &c};
  kv.check(live);
  kv.release(a);
  kv.release(b);
  kv.release(c);
}

TEST_CASE("KvManager: without its window pages a boundary is no resume point", "[kvcache][unit]") {
  KvManager kv(geometry(2), options(4 * 64));
  SequenceKv a = kv.create({});
  advance(kv, a, tokens(640));
  // Fill the pool so that cached window pages of a are evicted.
  SequenceKv filler = kv.create({.dense = true, .share_prefix = false});
  int32_t length = 16;
  while (kv.reserve(filler, length)) length += 16;
  REQUIRE(kv.byte_counts().cached == 0);
  kv.release(filler);
  std::vector<int32_t> half = tokens(640);
  half[330] = -1;
  SequenceKv b = kv.create({});
  REQUIRE(kv.adopt(b, half, 639) == 16);  // the sink page alone is all that position 16 sees
  kv.release(b);
  SequenceKv c = kv.create({});
  REQUIRE(kv.adopt(c, tokens(700), 699) == 640);
  kv.release(c);
  kv.release(a);
  kv.check({});
}

TEST_CASE("KvManager: faithful prompts hold everything until they end", "[kvcache][unit]") {
  KvManager kv(geometry(2), options(400));
  const SequenceRules rules{.faithful_tokens = 320};
  SequenceKv a = kv.create(rules);
  advance(kv, a, tokens(304));
  REQUIRE(kv.held_bytes(a) == kv.geometry().bytes_for(304, true));
  REQUIRE(kv.window_start(a, 0, 319) == 0);
  REQUIRE(kv.window_start(a, 0, 320) == 281);
  advance(kv, a, tokens(320));
  REQUIRE(kv.held_bytes(a) == kv.geometry().bytes_for(320, false));
  advance(kv, a, tokens(400));
  kv.release(a);
  // What it generated is its own; its prompt serves a dense sequence too.
  SequenceKv dense = kv.create({.dense = true});
  REQUIRE(kv.adopt(dense, tokens(400), 399) == 320);
  kv.release(dense);
  SequenceKv streaming = kv.create({});
  REQUIRE(kv.adopt(streaming, tokens(400), 399) == 0);
  kv.release(streaming);
  kv.check({});
}

TEST_CASE("KvManager: forks share pages and copy the open one on write", "[kvcache][unit]") {
  KvManager kv(geometry(1), options(100));
  SequenceKv a = kv.create({});
  advance(kv, a, tokens(40));
  SequenceKv b = kv.fork(a);
  REQUIRE(kv.byte_counts().held == 3 * 4 * 1024);
  REQUIRE(kv.reserve(a, 41));
  const std::vector<PageCopy> copies = kv.take_copies();
  REQUIRE(copies.size() == 2);  // one per group
  REQUIRE(copies[0].from != copies[0].to);
  REQUIRE(kv.reserve(b, 41));
  REQUIRE(kv.take_copies().empty());
  const SequenceKv* live[] = {&a, &b};
  kv.check(live);
  REQUIRE(kv.byte_counts().held == 4 * 4 * 1024);
  kv.release(a);
  kv.release(b);
}

TEST_CASE("KvManager: a refused reservation changes nothing", "[kvcache][unit]") {
  KvManager kv(geometry(2), options(4 * 8));
  SequenceKv a = kv.create({.dense = true});
  advance(kv, a, tokens(64));
  const PoolCounts before = kv.byte_counts();
  REQUIRE_FALSE(kv.reserve(a, 16 * 9));
  REQUIRE(kv.byte_counts().held == before.held);
  REQUIRE(kv.reserve(a, 16 * 8));
  const SequenceKv* live[] = {&a};
  kv.check(live);
}

TEST_CASE("KvManager: conservation under random traffic", "[kvcache][unit]") {
  const int window_heads = GENERATE(0, 2, 4);
  const RetentionRule rule = GENERATE(kWindow, kRazor, kShard);
  KvManager kv(geometry(window_heads, rule), options(4 * 40, 6));
  std::mt19937 random(11);
  struct Live {
    SequenceKv kv;
    std::vector<int32_t> ids;
    size_t committed;
  };
  std::deque<Live> live;
  int refused = 0, adopted = 0;
  for (int round = 0; round < 4000; ++round) {
    const auto action = random() % 8;
    if (action == 0 && kv.num_free_slots() > 0) {
      std::vector<int32_t> ids = tokens(static_cast<int>(40 + random() % 200));
      for (size_t cut = random() % ids.size(); cut < ids.size(); ++cut)
        ids[cut] += static_cast<int32_t>(random() % 3 == 0);
      const auto mode = random() % 3;
      const SequenceRules rules{
          .dense = mode == 0, .faithful_tokens = mode == 1 ? static_cast<int32_t>(ids.size()) : 0};
      Live& seq = live.emplace_back(Live{kv.create(rules), std::move(ids), 0});
      seq.committed =
          static_cast<size_t>(kv.adopt(seq.kv, seq.ids, static_cast<int32_t>(seq.ids.size()) - 1));
      adopted += seq.committed > 0;
    } else if (action == 1 && !live.empty() && kv.num_free_slots() > 0) {
      const Live& parent = live[random() % live.size()];
      live.push_back({kv.fork(parent.kv), parent.ids, parent.committed});
    } else if (action == 2 && !live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      kv.release(live.back().kv);
      live.pop_back();
    } else if (!live.empty()) {
      Live& seq = live[random() % live.size()];
      const size_t end = seq.committed + 1 + random() % 30;
      while (seq.ids.size() < end) seq.ids.push_back(static_cast<int32_t>(random() % 3));
      if (kv.reserve(seq.kv, static_cast<int32_t>(end))) {
        kv.commit(seq.kv, std::span(seq.ids).first(end));
        seq.committed = end;
      } else {
        ++refused;
        kv.release(seq.kv);
        std::swap(seq, live.back());
        live.pop_back();
      }
      kv.take_copies();
    }
    std::vector<const SequenceKv*> all;
    for (const Live& seq : live) all.push_back(&seq.kv);
    kv.check(all);
  }
  REQUIRE(refused > 10);
  REQUIRE(adopted > 10);
}

TEST_CASE("KvManager: a device's tables, kept by the recorded changes, equal the host's",
          "[kvcache][unit]") {
  const RetentionRule rule = GENERATE(kFull, kWindow, kRazor, kShard);
  const auto seed = static_cast<uint32_t>(GENERATE(1, 2, 3));
  CAPTURE(rule.window_start(1000), seed);
  KvManager kv(geometry(3, rule), options(500));
  kv.record_table_changes();
  std::vector<PageId> device(static_cast<size_t>(kv.table_bytes()) / sizeof(PageId), 0);
  std::mt19937 random(seed);
  std::deque<SequenceKv> live;
  std::vector<std::vector<int32_t>> ids;
  size_t num_changes = 0;
  for (int step = 0; step < 300; ++step) {
    const uint32_t choice = random() % 8;
    if ((choice == 0 || live.empty()) && kv.num_free_slots() > 0) {
      live.push_back(kv.create({.faithful_tokens = random() % 2 == 0 ? 100 : 0}));
      ids.push_back(tokens(700, static_cast<int>(random() % 3)));
      kv.adopt(live.back(), ids.back(), 600);
    } else if (choice == 1 && !live.empty() && kv.num_free_slots() > 0) {
      live.push_back(kv.fork(live.front()));
      ids.push_back(ids.front());
    } else if (choice == 2 && !live.empty()) {
      kv.release(live.front());
      live.pop_front();
      ids.erase(ids.begin());
    } else if (!live.empty()) {
      const size_t i = random() % live.size();
      const int32_t end =
          std::min<int32_t>(700, live[i].num_tokens() + 1 + static_cast<int32_t>(random() % 60));
      if (kv.reserve(live[i], end)) kv.commit(live[i], {ids[i].data(), static_cast<size_t>(end)});
    }
    if (step % 3 != 0) continue;  // several changes of one entry between two steps
    for (const TableEntry& entry : kv.take_table_changes()) {
      device[static_cast<size_t>(entry.offset)] = entry.page;
      ++num_changes;
    }
    REQUIRE(std::equal(device.begin(), device.end(), kv.tables()));
  }
  REQUIRE(num_changes > 1000);
  while (!live.empty()) {
    kv.release(live.back());
    live.pop_back();
  }
}
