#include <catch2/catch.hpp>
#include <set>

#include "engine/kv_budget.h"
#include "engine/schedule/prefill_pacer.h"
#include "engine/schedule/step_plan.h"
#include "kernels/base/status.h"
#include "tests/support/engine_harness.h"
#include "tests/support/random.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test
using Catch::Matchers::Contains;

TEST_CASE("PrefillPacer: prefill rides along within the stretch", "[engine][unit]") {
  PrefillPacer pacer(2.0, 8, 512);
  REQUIRE(pacer.rows(0) == 512);
  REQUIRE(pacer.rows(4) == 0);  // what decodes alone cost is not known: a step without tells
  pacer.observe(4, 0, 0.010);
  REQUIRE(pacer.rows(4) == 8);
  REQUIRE(pacer.rows(3) == 0);
  const auto steps = [&](int count, double any, double per_row) {
    for (int i = 0; i < count; ++i) {
      const int32_t rows = pacer.rows(4);
      pacer.observe(4, 0, 0.010);
      pacer.observe(4, rows, 0.010 + any + rows * per_row);
    }
  };
  steps(100, 0, 0.0001);
  // 100 rows fit; now and then half as many, to see what a row costs.
  REQUIRE((pacer.rows(4) == 96 || pacer.rows(4) == 48));
  REQUIRE(pacer.rows(5) == pacer.rows(4));  // nothing seen yet: as with four
  REQUIRE(pacer.rows(0) == 512);
  steps(300, 0, 0.01);
  REQUIRE(pacer.rows(4) <= 8);
  // What any prefill costs is over the stretch already: rows for as much again, not the fewest.
  steps(300, 0.030, 0.0001);
  REQUIRE(pacer.rows(4) >= 136);
  REQUIRE(pacer.rows(4) <= 304);
}

TEST_CASE("PrefillPacer: neither a slow first step nor noise keeps prefill small",
          "[engine][unit]") {
  PrefillPacer pacer(2.0, 256, 2048);
  Random random(3);
  const auto noise = [&] { return 0.0005 * random.unit(); };
  pacer.observe(0, 2048, 1.0);
  for (int i = 0; i < 10; ++i) {
    pacer.observe(16, 0, 0.0025 + noise());
    const int32_t rows = pacer.rows(16);
    pacer.observe(16, rows, 0.0055 + 2e-6 * rows + noise());
  }
  REQUIRE(pacer.rows(16) > 256);
}

TEST_CASE("Scheduler: a long prompt is cut up while others decode, none waits for it",
          "[engine][unit]") {
  const auto files = make_tiny_model();
  HarnessOptions options;
  options.max_num_batched_tokens = 256;
  EngineHarness harness(*files, options);
  std::vector<std::shared_ptr<Collected>> streams;
  for (int i = 0; i < 4; ++i)
    streams.push_back(harness.add(make_request(std::vector<int32_t>(10, 70 + i), 400)));
  for (int i = 0; i < 10; ++i) harness.core().step();
  const auto tall = harness.add(make_request(std::vector<int32_t>(900, 65), 4));
  int steps = 0;
  while (tall->choices[0].tokens.empty()) {
    std::vector<size_t> before;
    for (const auto& stream : streams) before.push_back(stream->choices[0].tokens.size());
    REQUIRE(harness.core().step());
    ++steps;
    for (size_t i = 0; i < streams.size(); ++i)
      if (!streams[i]->done()) REQUIRE(streams[i]->choices[0].tokens.size() == before[i] + 1);
  }
  REQUIRE(steps > 4);  // 900 tokens did not go in chunks of 256
  harness.run();
}

TEST_CASE("Scheduler: order of arrival, and preemption takes the latest", "[engine][unit]") {
  const auto files = make_tiny_model();
  HarnessOptions options;
  options.kv_pages = 4 * 12;
  options.prefix_caching = false;
  EngineHarness harness(*files, options);
  const auto first = harness.add(make_request(std::vector<int32_t>(60, 65), 80));
  const auto second = harness.add(make_request(std::vector<int32_t>(60, 66), 80));
  while (!first->done()) REQUIRE(harness.core().step());
  REQUIRE_FALSE(second->done());
  REQUIRE(harness.core().stats().num_preemptions == 1);
  harness.run();
  REQUIRE(second->choices[0].tokens.size() == 80);
}

TEST_CASE("KvBudget: the pool bounds the length, and says which option to change",
          "[engine][unit]") {
  const auto files = make_tiny_model();
  const PageShape page{DType::kF32, 32, 16, 0};  // 4 KiB
  const kv::KvGeometry geometry(2, 2, std::vector<kv::RetentionRule>(4), page);
  EngineConfig config;
  KvBudget budget = plan_kv_budget(config, files->spec, geometry, false, int64_t{16} << 30);
  REQUIRE(budget.max_model_len == 4096);
  REQUIRE(budget.arena_bytes >= geometry.bytes_for(4096, true));
  config.kv_cache_bytes = 100 * 4096;
  budget = plan_kv_budget(config, files->spec, geometry, false, int64_t{16} << 30);
  REQUIRE(budget.arena_bytes <= config.kv_cache_bytes);
  REQUIRE(budget.max_model_len == 25 * 16);
  config.max_model_len = 500;
  REQUIRE_THROWS_WITH(plan_kv_budget(config, files->spec, geometry, false, 1 << 28),
                      Contains("kv-cache-bytes"));
  config.max_model_len = 5000;
  REQUIRE_THROWS_WITH(plan_kv_budget(config, files->spec, geometry, false, 1 << 28),
                      Contains("trained for 4096"));
}

TEST_CASE("KvBudget: a GPU's pool takes what weights and scratch leave of our share",
          "[engine][unit]") {
  constexpr int64_t kGb = 1'000'000'000;
  const DeviceBytes at_start{79 * kGb, 80 * kGb};
  const DeviceBudget budget = plan_device_budget(0.9, at_start, 63 * kGb, kGb);
  REQUIRE(budget.share_bytes == 72 * kGb);
  REQUIRE(budget.loaded_bytes == 16 * kGb);
  REQUIRE(budget.pool_bytes == 55 * kGb);
  // A neighbour's memory is not ours, but our share must be free.
  REQUIRE(plan_device_budget(0.5, {45 * kGb, 80 * kGb}, 29 * kGb, kGb).pool_bytes == 23 * kGb);
  REQUIRE_THROWS_WITH(plan_device_budget(0.9, {45 * kGb, 80 * kGb}, 29 * kGb, kGb),
                      Contains("gpu-memory-utilization 0.9") && Contains("45 GB were free"));
  REQUIRE_THROWS_WITH(plan_device_budget(0.2, at_start, 63 * kGb, kGb),
                      Contains("gpu-memory-utilization 0.2") && Contains("nothing is left"));

  const auto files = make_tiny_model();
  const kv::RetentionRule razor{.recent_tokens = 64, .block_tokens = 64, .compensate = true};
  const kv::KvGeometry geometry(2, 2, std::vector{razor, {}, razor, {}}, {DType::kF32, 32, 16, 0});
  EngineConfig config;
  config.max_num_seqs = 8;
  const int64_t scratch = step_scratch_bytes(config, files->spec, geometry);
  config.max_num_seqs = 16;
  const kv::KvManager kv(geometry, {1 << 20, 4096, 8, files->spec.max_positions});
  REQUIRE(step_scratch_bytes(config, files->spec, geometry) - scratch == kv.table_bytes());
}

TEST_CASE("KvBudget: a sequence as long as promised fits, whatever the policy keeps",
          "[engine][unit]") {
  const auto files = make_tiny_model();
  const kv::RetentionRule full;
  const kv::RetentionRule window{.sink_tokens = 4, .recent_tokens = 100};
  const kv::RetentionRule razor{.sink_tokens = 4,
                                .recent_tokens = 64,
                                .growth_ppm = 200'000,
                                .block_tokens = 64,
                                .compensate = true};
  const kv::RetentionRule shard{.recent_tokens = 33, .block_tokens = 32, .shard_stride = 4};
  const bool faithful = GENERATE(false, true);
  const std::vector<kv::RetentionRule> rules =
      GENERATE_COPY(std::vector{full, full, full, full},
                    std::vector{window, window, window, window},
                    std::vector{full, window, window, window},
                    std::vector{razor, full, razor, razor},
                    std::vector{shard, shard, shard, full});
  const kv::KvGeometry geometry(2, 2, rules, {DType::kF32, 32, 16, 0});
  EngineConfig config;
  config.max_num_batched_tokens = 48;
  config.max_num_seqs = 4;
  config.kv_cache_bytes = 150 * 4096;
  const KvBudget budget =
      plan_kv_budget(config, files->spec, geometry, faithful, int64_t{16} << 30);
  // Whether one sequence can grow so long, as the scheduler steps it.
  const auto holds = [&](int32_t num_tokens, bool dense) {
    kv::KvManager kv(geometry,
                     {.arena_bytes = budget.arena_bytes,
                      .superblock_bytes = budget.superblock_bytes,
                      .max_sequences = 1,
                      .max_tokens = num_tokens});
    kv::SequenceKv seq =
        kv.create({.dense = dense, .faithful_tokens = faithful && !dense ? num_tokens : 0});
    const std::vector<int32_t> ids(static_cast<size_t>(num_tokens), 1);
    for (int32_t end = 0; end < num_tokens;) {
      end = std::min(num_tokens, end + 48);
      if (!kv.reserve(seq, end)) return false;
      kv.commit(seq, std::span(ids).first(static_cast<size_t>(end)));
    }
    return true;
  };
  CAPTURE(faithful, budget.max_model_len, budget.max_dense_len);
  REQUIRE(holds(budget.max_model_len, false));
  REQUIRE(holds(budget.max_dense_len, true));
  const int32_t slack = budget.max_model_len / 8 + 192;  // and the promise is not much too small
  if (budget.max_model_len < files->spec.max_positions)
    REQUIRE_FALSE(holds(budget.max_model_len + slack, false));
  if (rules[0] == window && rules[1] == window && !faithful)
    REQUIRE(budget.max_model_len == files->spec.max_positions);
}

TEST_CASE("StepPlan: the bound of positions is near, never below, and has few values",
          "[engine][unit]") {
  constexpr int32_t kMaxTokens = 131072 + 1000;
  std::set<int32_t> values;
  int32_t before = 0;
  for (int32_t n = 1; n <= kMaxTokens; ++n) {
    const int32_t bound = position_bound(n, kMaxTokens);
    REQUIRE(bound >= std::max(n, before));
    REQUIRE(bound <= kMaxTokens);
    REQUIRE(bound <= std::max(n + n / 2, n + kPositionBoundStep));
    values.insert(bound);
    before = bound;
  }
  CHECK(values.size() == 13);
  CHECK(position_bound(1, 100) == 100);
  CHECK(position_bound(2'147'483'647, 2'147'483'647) == 2'147'483'647);
}

TEST_CASE("StepPlan: sequences with one row come first, long contexts last", "[engine][unit]") {
  const kv::RetentionRule full;
  kv::KvManager kv(
      kv::KvGeometry(1, 1, std::vector{full}, {DType::kF32, 32, 16, 0}),
      {.arena_bytes = 1 << 20, .superblock_bytes = 1 << 14, .max_sequences = 5, .max_tokens = 64});
  const std::vector<int32_t> counts = {3, 1, 1, 1, 5};
  std::vector<Sequence> seqs(counts.size());
  StepPlan plan;
  for (size_t i = 0; i < seqs.size(); ++i) {
    seqs[i].rules.key_space = i == 2 || i == 4 ? 1 : 0;
    seqs[i].kv = kv.create(seqs[i].rules);
    seqs[i].tokens.assign(50, 1);
    seqs[i].num_prompt = 50;
    plan.sequences.push_back({&seqs[i], 10, counts[i], 0, 0});
  }
  flatten(plan, kv);
  std::vector<Sequence*> order;
  for (const PlannedRows& rows : plan.sequences) order.push_back(rows.seq);
  CHECK((order == std::vector{&seqs[1], &seqs[3], &seqs[0], &seqs[2], &seqs[4]}));
  CHECK(plan.row_begin == std::vector<int32_t>{0, 1, 2, 5, 6, 11});
  CHECK(plan.num_single_rows == 2);
  CHECK(plan.num_long_rows == 6);
}
