// Random requests on a tiny pool: lengths, arrivals, cancels, overlapping prefixes, choices,
// requests that ask for dense among others. 1,000 in the unit tests, 10,000 in the soak (slow). The
// conservation law is checked after every step, every request gets exactly one terminal event per
// choice, and what ran to its end is bit for bit what it is alone.
#include <catch2/catch.hpp>
#include <map>
#include <random>

#include "tests/support/engine_harness.h"
#include "tests/support/sanitized.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

const kv::RetentionRule kFull{};
const kv::RetentionRule kWindow{4, 40};
const kv::RetentionRule kRazor{.sink_tokens = 4,
                               .recent_tokens = 20,
                               .growth_ppm = 200'000,
                               .block_tokens = 16,
                               .compensate = true};
const kv::RetentionRule kShard{
    .recent_tokens = 17, .block_tokens = 16, .shard_stride = 3, .shard_phase = 1};

struct Policy {
  const char* name;
  std::vector<kv::RetentionRule> rules;  // tiny model: 2 layers x 2 kv heads
  bool faithful = false;
};
const Policy kPolicies[] = {{"dense", {}},
                            {"window, streaming", {kWindow, kFull, kShard, kWindow}},
                            {"razor, streaming", {kRazor, kFull, kRazor, kRazor}},
                            {"razor, faithful", {kRazor, kFull, kWindow, kRazor}, true}};

const LoadedModel& model() {
  static const auto files = [] {
    TinyModelOptions options;
    options.format = QuantFormat::kQ8_0;
    options.embedding_format = QuantFormat::kQ8_0;
    return make_tiny_model(options);
  }();
  return *files;
}

struct Case {
  Request request;
  std::shared_ptr<Collected> collected;
  bool cancelled = false;
};

Request random_request(std::mt19937& random, const std::vector<std::vector<int32_t>>& documents) {
  const std::vector<int32_t>& document = documents[random() % documents.size()];
  std::vector<int32_t> prompt(document.begin(),
                              document.begin() + static_cast<int64_t>(random() % document.size()));
  for (uint32_t extra = 1 + random() % 20; extra-- > 0;)
    prompt.push_back(static_cast<int32_t>(random() % 256));
  Request request = make_request(std::move(prompt), static_cast<int32_t>(1 + random() % 60));
  request.sampling.temperature = random() % 2 == 0 ? 0.0f : 1.0f;
  request.sampling.seed = random();
  request.sampling.repetition_penalty = random() % 4 == 0 ? 1.3f : 1.0f;
  request.sampling.logprobs = 0;
  request.n = random() % 8 == 0 ? 3 : 1;
  if (random() % 20 == 0) request.sampling.prompt_logprobs = 1;
  if (random() % 6 == 0) request.attention.policy = "dense";
  return request;
}

void run_workload(const TestDevice& device, const Policy& policy, size_t num_requests) {
  CAPTURE(device, policy.name);
  HarnessOptions options;
  options.device = device;
  options.rules = policy.rules;
  options.faithful = policy.faithful;
  options.kv_pages = 4 * 24;  // the longest request needs 18 of these 24
  options.max_num_seqs = 6;
  options.max_model_len = 280;
  EngineHarness harness(model(), options);

  std::mt19937 random(2024);
  std::vector<std::vector<int32_t>> documents(6, std::vector<int32_t>(200));
  for (size_t i = 0; i < documents.size(); ++i)
    for (size_t j = 0; j < 200; ++j)  // documents share their beginnings
      documents[i][j] = j < 64 ? static_cast<int32_t>(j) : static_cast<int32_t>(random() % 256);

  std::vector<Case> cases;
  while (cases.size() < num_requests || !harness.core().idle()) {
    for (uint32_t arrivals = random() % 3; arrivals-- > 0 && cases.size() < num_requests;) {
      Case& c = cases.emplace_back(Case{random_request(random, documents), nullptr});
      c.request.id = cases.size();
      c.collected = harness.add(c.request);
    }
    if (random() % 10 == 0 && !cases.empty()) {
      Case& c = cases[cases.size() - 1 - random() % std::min<size_t>(cases.size(), 12)];
      c.cancelled = c.cancelled || !c.collected->done();
      harness.core().end(c.request.id, Status::Ok());
    }
    harness.core().step();  // checks the law (HarnessOptions::check_invariants)
  }
  REQUIRE(harness.core().kv().byte_counts().held == 0);
  const EngineStats stats = harness.core().stats();
  REQUIRE(stats.num_preemptions > 0);
  REQUIRE(stats.prefix_hit_tokens > 0);

  HarnessOptions alone = options;
  alone.prefix_caching = false;
  alone.max_num_batched_tokens = 512;
  EngineHarness reference(model(), alone);
  int finished = 0, cancelled = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    CAPTURE(i);
    for (const Collected::Choice& choice : c.collected->choices) {
      REQUIRE(choice.terminal_events == 1);
      REQUIRE(choice.finish != FinishReason::kError);
    }
    if (c.cancelled) {
      ++cancelled;
      continue;
    }
    ++finished;
    if (i % 4 != 0) continue;  // every fourth is run again
    const Collected expected = reference.generate(c.request);
    REQUIRE(c.collected->prompt_logprobs.size() == expected.prompt_logprobs.size());
    require_same(device, *c.collected, expected);
  }
  REQUIRE(finished > static_cast<int>(num_requests / 10 * 7));
  REQUIRE(cancelled > static_cast<int>(num_requests / 50));
}

}  // namespace

TEST_CASE("Workload: 1,000 random requests on a tiny pool", "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const Policy policy = GENERATE(from_range(std::begin(kPolicies), std::end(kPolicies)));
  run_workload(*device, policy, kSanitized ? 120 : 1000);
}

TEST_CASE("Workload: soak of 10,000 mixed requests", "[engine][slow]") {
  const Policy policy = GENERATE(from_range(std::begin(kPolicies), std::end(kPolicies)));
  run_workload({"cpu"}, policy, 10000);
}
