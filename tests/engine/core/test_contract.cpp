// The contract of kv-design section 3, over every policy and device: placement means nothing, bit
// for bit where the device is exact. Reference of each case: the same request alone, its prompt in
// one chunk, nothing cached.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <random>

#include "engine/attention/policy_table.h"
#include "tests/support/engine_harness.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_file.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

struct Policy {
  const char* name;
  std::vector<kv::RetentionRule> rules;  // tiny model: 2 layers x 2 kv heads
  bool faithful;
};

const kv::RetentionRule kFull{};
const kv::RetentionRule kWindow{4, 40};
const kv::RetentionRule kShort{0, 17};
// RazorAttention, scaled down: a fifth of the context, at least 24, folded by 16 or 32.
const kv::RetentionRule kRazor{.sink_tokens = 4,
                               .recent_tokens = 24,
                               .growth_ppm = 200'000,
                               .block_tokens = 16,
                               .compensate = true};
const kv::RetentionRule kRazorWide{.sink_tokens = 4,
                                   .recent_tokens = 20,
                                   .growth_ppm = 100'000,
                                   .block_tokens = 32,
                                   .compensate = true};

// A head table and options that scale each policy down to the prompts below.
constexpr const char* kTable = R"({
  "format": "headwater.head_table/1", "method": "measured",
  "model": {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32},
  "heads": [["compressed", "full"], ["compressed", "compressed"]]})";
constexpr const char* kSpans =
    R"({"alphas": [[-10, 0, 130, 0], [20, -40, 0, 0]], "betas": [[0.5, 0, 0, 1], [0.25, 0.75, 0, 0]]})";

EngineConfig scaled_down(const AttentionPolicy& policy, const TempFolder& folder) {
  EngineConfig config;
  config.attention = policy.name;
  if (policy.table == TableUse::kRefused) return config;
  if (policy.name == "moa") {  // by query heads, as published
    config.head_table = folder.add("spans.json", kSpans);
    return config;
  }
  config.window_sinks = 4;
  config.window_recent = policy.name == "s2" ? 17 : 24;
  if (policy.compressed.block_tokens > 1) config.window_block = 16;
  if (policy.name == "s2") {
    config.s2_stride = 3;
  } else {
    config.head_table = folder.add("table.json", kTable);
  }
  return config;
}

// Every row of the policy table in its own prefill mode; then what the rows leave out.
std::vector<Policy> policies() {
  const TempFolder folder;
  std::vector<Policy> all;
  for (const AttentionPolicy& row : attention_policies()) {
    AttentionPlan plan = plan_attention(scaled_down(row, folder), *make_tiny_model());
    all.push_back({row.name.data(), std::move(plan.rules), plan.faithful});
  }
  const std::vector<kv::RetentionRule> spans =
      std::ranges::find(all, std::string_view("moa"), &Policy::name)->rules;
  all.push_back({"window on every head, streaming", {kWindow, kWindow, kWindow, kWindow}, false});
  all.push_back({"window on every head, faithful", {kShort, kShort, kWindow, kWindow}, true});
  all.push_back({"razor, streaming", {kRazor, kFull, kRazor, kRazorWide}, false});
  all.push_back({"razor on every head, streaming", {kRazor, kRazor, kRazor, kRazor}, false});
  all.push_back({"spans, faithful", spans, true});
  return all;
}

const LoadedModel& model(QuantFormat format) {
  static const auto f32 = make_tiny_model();
  static const auto q8 = [] {
    TinyModelOptions options;
    options.format = QuantFormat::kQ8_0;
    options.embedding_format = QuantFormat::kQ8_0;
    return make_tiny_model(options);
  }();
  return format == QuantFormat::kF32 ? *f32 : *q8;
}

std::vector<int32_t> prompt(int length, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(length));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 256);
  return ids;
}

Request with_logprobs(std::vector<int32_t> ids, int32_t max_tokens) {
  Request request = make_request(std::move(ids), max_tokens);
  request.sampling.temperature = 0.8f;
  request.sampling.seed = 5;
  request.sampling.logprobs = 3;
  return request;
}

}  // namespace

TEST_CASE("Contract: chunks, neighbours, prefix hits, preemption and forks change no bit",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const Policy policy = GENERATE(from_range(policies()));
  const QuantFormat format = device->name == "ref" ? QuantFormat::kF32 : QuantFormat::kQ8_0;
  const int32_t n = GENERATE(1, 4);
  CAPTURE(*device, policy.name, n);
  HarnessOptions options;
  options.device = *device;
  options.rules = policy.rules;
  options.faithful = policy.faithful;

  const std::vector<int32_t> ids = prompt(150, 3);
  Request request = with_logprobs(ids, 40);
  request.n = n;
  HarnessOptions whole = options;
  whole.max_num_batched_tokens = 1024;
  whole.prefix_caching = false;
  const Collected expected = EngineHarness(model(format), whole).generate(request);
  REQUIRE(expected.choices[0].tokens.size() == 40);

  SECTION("chunked prefill") {
    for (int32_t chunk : kSanitized ? std::vector{7, 50} : std::vector{1, 7, 16, 50}) {
      options.max_num_batched_tokens = chunk;
      options.max_num_seqs = std::min(8, chunk);
      options.prefix_caching = false;
      if (n > options.max_num_seqs) options.max_num_seqs = n;
      require_same(*device, EngineHarness(model(format), options).generate(request), expected);
    }
  }
  SECTION("prefix hit") {
    EngineHarness harness(model(format), options);
    require_same(*device, harness.generate(request), expected);
    const Collected again = harness.generate(request);
    REQUIRE(again.choices[0].usage.cached_tokens >= 128);
    require_same(*device, again, expected);
    std::vector<int32_t> longer = ids;
    longer.insert(
        longer.end(), expected.choices[0].tokens.begin(), expected.choices[0].tokens.end());
    const std::vector<int32_t> tail = prompt(30, 9);
    longer.insert(longer.end(), tail.begin(), tail.end());
    const Request next = with_logprobs(longer, 20);
    const Collected fresh = EngineHarness(model(format), whole).generate(next);
    const Collected resumed = harness.generate(next);
    REQUIRE(resumed.choices[0].usage.cached_tokens >= 128);
    require_same(*device, resumed, fresh);
  }
  SECTION("neighbours, small chunks, threads") {
    options.threads = 3;
    options.max_num_batched_tokens = 48;
    EngineHarness harness(model(format), options);
    std::vector<std::shared_ptr<Collected>> others;
    for (uint32_t i = 0; i < 3; ++i) {
      others.push_back(
          harness.add(with_logprobs(prompt(20 + 60 * static_cast<int>(i), 20 + i), 50)));
      harness.core().step();
    }
    require_same(*device, harness.generate(request), expected);
    for (const auto& other : others) REQUIRE(other->done());
  }
  SECTION("preemption") {
    // Ever smaller pools, down to one that cannot hold the longest sequence alone.
    options.max_num_batched_tokens = 32;
    uint64_t num_preemptions = 0;
    for (int64_t rows = 24; rows > 0; rows -= kSanitized ? 2 : 1) {
      options.kv_pages = 4 * rows;
      EngineHarness harness(model(format), options);
      const auto first = harness.add(with_logprobs(prompt(100, 30), 80));
      const auto second = harness.add(request);
      const auto third = harness.add(with_logprobs(prompt(60, 31), 60));
      harness.run();
      if (std::ranges::any_of(second->choices, [](const Collected::Choice& choice) {
            return choice.finish == FinishReason::kError;
          }))
        break;
      require_same(*device, *second, expected);
      REQUIRE(third->done());
      num_preemptions += harness.core().stats().num_preemptions;
    }
    if (!policy.faithful || n > 1) REQUIRE(num_preemptions > 0);
  }
}

TEST_CASE("Contract: an answer scored behind a faithful prompt is the answer as generated",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const Policy policy = GENERATE(from_range(policies()));
  CAPTURE(*device, policy.name);
  HarnessOptions options;
  options.device = *device;
  options.rules = policy.rules;
  const QuantFormat format = device->name == "ref" ? QuantFormat::kF32 : QuantFormat::kQ8_0;
  for (const bool faithful : {true, false}) {
    options.faithful = faithful;  // a request may ask for the other mode
    EngineHarness harness(model(format), options);
    Request request = make_request(prompt(150, 3), 60);
    request.sampling.logprobs = 0;
    request.attention.faithful_tokens = 150;
    const Collected generated = harness.generate(request);
    const std::vector<int32_t>& answer = generated.choices[0].tokens;

    Request scored = make_request(request.prompt, 1);
    scored.prompt.insert(scored.prompt.end(), answer.begin(), answer.end());
    scored.sampling.prompt_logprobs = 0;
    scored.attention.faithful_tokens = 150;
    const Collected score = harness.generate(scored);
    REQUIRE(score.prompt_logprobs.size() == 150 - 1 + answer.size());
    for (size_t i = 0; i < answer.size(); ++i)
      REQUIRE(std::abs(score.prompt_logprobs[150 - 1 + i].chosen.logprob -
                       generated.choices[0].logprobs[i].chosen.logprob) <= tolerance(*device));

    // Where heads drop, a prompt that is faithful to its end scores otherwise.
    scored.attention.faithful_tokens = static_cast<int32_t>(scored.prompt.size());
    const float last = harness.generate(scored).prompt_logprobs.back().chosen.logprob;
    const float difference = std::abs(last - generated.choices[0].logprobs.back().chosen.logprob);
    const bool drops = !std::ranges::all_of(policy.rules, &kv::RetentionRule::keeps_all);
    REQUIRE((drops ? difference > 0 : difference <= tolerance(*device)));
  }
}

TEST_CASE("Contract: a window as long as the context is dense, bit for bit",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const bool faithful = GENERATE(false, true);
  const QuantFormat format = device->name == "ref" ? QuantFormat::kF32 : QuantFormat::kQ8_0;
  HarnessOptions options;
  options.device = *device;
  const Request request = with_logprobs(prompt(200, 4), 60);
  const Collected dense = EngineHarness(model(format), options).generate(request);
  options.rules.assign(4, kv::RetentionRule{4, 260});
  options.faithful = faithful;
  require_same(*device, EngineHarness(model(format), options).generate(request), dense);
  options.rules.assign(4, kv::RetentionRule{4, 60});
  const Collected narrow = EngineHarness(model(format), options).generate(request);
  REQUIRE(narrow.choices[0].logprobs.back().chosen.logprob !=
          dense.choices[0].logprobs.back().chosen.logprob);
}

TEST_CASE("Contract: window heads hold what the geometry says; usage tells",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  HarnessOptions options;
  options.device = *device;
  options.rules = {kWindow, kFull, kWindow, kWindow};
  options.faithful = GENERATE(false, true);
  EngineHarness harness(model(QuantFormat::kF32), options);
  const Collected result = harness.generate(make_request(prompt(500, 5), 100));
  const Usage& usage = result.choices[0].usage;
  const kv::KvGeometry& geometry = harness.core().kv().geometry();
  REQUIRE(usage.kv_bytes == geometry.bytes_for(599, false));
  REQUIRE(usage.kv_bytes_dense == geometry.dense_cache_bytes(599));
  REQUIRE(usage.kv_bytes < usage.kv_bytes_dense / 2);
}

TEST_CASE("Contract: a request's own budget bounds its compressed heads and changes no neighbour",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const QuantFormat format = device->name == "ref" ? QuantFormat::kF32 : QuantFormat::kQ8_0;
  HarnessOptions options;
  options.device = *device;
  options.faithful = GENERATE(false, true);
  options.rules = {kRazor, kFull, kRazor, kWindow};
  const Request request = with_logprobs(prompt(400, 6), 60);
  Request narrow = request;
  narrow.attention.kv_budget = 40;
  HarnessOptions whole = options;
  whole.max_num_batched_tokens = 1024;
  whole.prefix_caching = false;
  const Collected wide = EngineHarness(model(format), whole).generate(request);
  const Collected expected = EngineHarness(model(format), whole).generate(narrow);
  const Usage& usage = expected.choices[0].usage;
  EngineHarness harness(model(format), options);
  const kv::KvGeometry& geometry = harness.core().kv().geometry();
  REQUIRE(usage.kv_bytes == geometry.bytes_for(459, false, 40));
  REQUIRE(usage.kv_bytes < wide.choices[0].usage.kv_bytes);
  for (const kv::KvGroup& group : geometry.groups())
    for (int32_t position = 0; position < 459 && !group.rule.keeps_all(); ++position) {
      const int32_t start = group.rule.window_start(position, 40);
      REQUIRE(position + 1 - start + std::min(start, group.rule.sink_tokens) <= 40);
    }
  REQUIRE(expected.choices[0].logprobs.back().chosen.logprob !=
          wide.choices[0].logprobs.back().chosen.logprob);

  // Over one prefix index: neither takes pages whose K and V it would not have computed.
  require_same(*device, harness.generate(request), wide);
  require_same(*device, harness.generate(narrow), expected);
  const Collected again = harness.generate(narrow);
  REQUIRE(again.choices[0].usage.cached_tokens >= 384);
  require_same(*device, again, expected);
  require_same(*device, harness.generate(request), wide);
  // Behind the end of the context a budget is none: it shares what the others computed.
  Request loose = request;
  loose.attention.kv_budget = 100'000;
  const Collected shared = harness.generate(loose);
  REQUIRE(shared.choices[0].usage.cached_tokens >= 384);
  require_same(*device, shared, wide);

  for (int32_t chunk : {7, 50}) {
    options.max_num_batched_tokens = chunk;
    options.max_num_seqs = std::min(8, chunk);
    EngineHarness chunked(model(format), options);
    chunked.add(with_logprobs(prompt(90, 8), 70));
    require_same(*device, chunked.generate(narrow), expected);
  }
}

TEST_CASE("Contract: statistics tell what heads keep and what was folded",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  HarnessOptions options;
  options.device = *device;
  options.rules = {kRazor, kFull, kRazor, kFull};
  EngineHarness harness(model(QuantFormat::kF32), options);
  harness.add(make_request(prompt(300, 5), 50));
  while (harness.core().scheduler().running().empty() ||
         !harness.core().scheduler().running()[0]->decoding())
    harness.core().step();
  const EngineStats stats = harness.core().stats();
  REQUIRE(stats.kv_tokens_full == 2 * 300);
  const kv::RetentionRule& rule = harness.core().kv().geometry().groups()[0].rule;
  const int32_t start = rule.window_start(300);  // a whole number of blocks, as the sinks are
  REQUIRE(stats.kv_tokens_compressed == 2 * (300 - start + rule.sink_tokens));
  REQUIRE(stats.kv_blocks_folded == static_cast<uint64_t>(2 * start / rule.block_tokens));
  REQUIRE(stats.kv_bytes_dense_equivalent == harness.core().kv().geometry().dense_cache_bytes(300));
}

TEST_CASE("Contract: windows let more sequences into the same pool at once",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  HarnessOptions options;
  options.device = *device;
  options.kv_pages = 4 * 96;  // dense: two sequences of 740 tokens
  options.max_num_batched_tokens = 128;
  const auto peak = [&](std::vector<kv::RetentionRule> rules) {
    options.rules = std::move(rules);
    EngineHarness harness(model(QuantFormat::kF32), options);
    for (uint32_t i = 0; i < 6; ++i) harness.add(make_request(prompt(440, 50 + i), 300));
    int64_t most = 0;
    while (harness.core().step()) {
      int64_t decoding = 0;
      for (const auto& seq : harness.core().scheduler().running()) decoding += seq->decoding();
      most = std::max(most, decoding);
    }
    return most;
  };
  REQUIRE(peak({}) <= 3);  // three while they are short
  REQUIRE(peak({kWindow, kWindow, kWindow, kWindow}) == 6);
}
