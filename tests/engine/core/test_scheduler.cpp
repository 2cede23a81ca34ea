#include <catch2/catch.hpp>

#include "engine/kv_budget.h"
#include "engine/schedule/prefill_pacer.h"
#include "kernels/base/status.h"
#include "tests/support/engine_harness.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test
using Catch::Matchers::Contains;

TEST_CASE("PrefillPacer: prefill rides along within the stretch", "[engine][unit]") {
  PrefillPacer pacer(2.0, 8, 512);
  REQUIRE(pacer.rows(0) == 512);
  REQUIRE(pacer.rows(4) == 8);
  for (int i = 0; i < 40; ++i) {
    pacer.observe(4, 0, 0.010);
    pacer.observe(4, 100, 0.010 + 100 * 0.0001);
  }
  REQUIRE(pacer.rows(4) == 96);
  REQUIRE(pacer.rows(5) == 96);  // nothing seen yet: as with four
  REQUIRE(pacer.rows(0) == 512);
  for (int i = 0; i < 40; ++i) pacer.observe(4, 100, 0.010 + 100 * 0.01);
  REQUIRE(pacer.rows(4) == 8);
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
  KvBudget budget = plan_kv_budget(config, files->spec, geometry, int64_t{64} << 30);
  REQUIRE(budget.max_model_len == 4096);
  REQUIRE(budget.arena_bytes >= geometry.bytes_for(4096, true));
  config.kv_cache_bytes = 100 * 4096;
  budget = plan_kv_budget(config, files->spec, geometry, int64_t{64} << 30);
  REQUIRE(budget.arena_bytes <= config.kv_cache_bytes);
  REQUIRE(budget.max_model_len == 25 * 16);
  config.max_model_len = 500;
  REQUIRE_THROWS_WITH(plan_kv_budget(config, files->spec, geometry, 1 << 30),
                      Contains("kv-cache-bytes"));
  config.max_model_len = 5000;
  REQUIRE_THROWS_WITH(plan_kv_budget(config, files->spec, geometry, 1 << 30),
                      Contains("trained for 4096"));
}
