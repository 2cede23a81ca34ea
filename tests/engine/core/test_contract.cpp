// The contract of kv-design section 3, over every policy: placement means nothing, bit for bit.
// Reference of each case: the same request alone, its prompt in one chunk, nothing cached.
#include <catch2/catch.hpp>
#include <random>

#include "tests/support/engine_harness.h"
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
// MoA: grows with the context, no compensation.
const kv::RetentionRule kSpan{
    .sink_tokens = 4, .recent_tokens = 16, .growth_ppm = 250'000, .growth_offset = -10};
// S2-Attention: every third block of 16, and the latest two.
const kv::RetentionRule kShard{
    .recent_tokens = 17, .block_tokens = 16, .shard_stride = 3, .shard_phase = 1};

std::vector<Policy> policies() {
  return {{"dense", {}, false},
          {"window on every head, streaming", {kWindow, kWindow, kWindow, kWindow}, false},
          {"window on some heads, streaming", {kWindow, kFull, kShort, kWindow}, false},
          {"window on some heads, faithful", {kWindow, kFull, kShort, kWindow}, true},
          {"window on every head, faithful", {kShort, kShort, kWindow, kWindow}, true},
          {"razor, streaming", {kRazor, kFull, kRazor, kRazorWide}, false},
          {"razor, faithful", {kRazor, kFull, kRazor, kRazorWide}, true},
          {"razor on every head, streaming", {kRazor, kRazor, kRazor, kRazor}, false},
          {"spans, streaming", {kSpan, kFull, kSpan, kShort}, false},
          {"spans, faithful", {kSpan, kFull, kSpan, kShort}, true},
          {"shards, streaming", {kShard, kFull, kShard, kWindow}, false}};
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

// Equal to the last bit: tokens, and the logprobs that show the logits.
void require_same(const Collected& a, const Collected& b) {
  REQUIRE(a.choices.size() == b.choices.size());
  for (size_t c = 0; c < a.choices.size(); ++c) {
    REQUIRE(a.choices[c].tokens == b.choices[c].tokens);
    REQUIRE(a.choices[c].finish == b.choices[c].finish);
    for (size_t i = 0; i < a.choices[c].logprobs.size(); ++i) {
      REQUIRE(a.choices[c].logprobs[i].chosen.logprob == b.choices[c].logprobs[i].chosen.logprob);
      for (size_t k = 0; k < a.choices[c].logprobs[i].top.size(); ++k)
        REQUIRE(a.choices[c].logprobs[i].top[k].logprob == b.choices[c].logprobs[i].top[k].logprob);
    }
  }
}

}  // namespace

TEST_CASE("Contract: chunks, neighbours, prefix hits, preemption and forks change no bit",
          "[engine][unit]") {
  const std::string device = GENERATE("ref", "cpu");
  const Policy policy = GENERATE(from_range(policies()));
  const QuantFormat format = device == "ref" ? QuantFormat::kF32 : QuantFormat::kQ8_0;
  const int32_t n = GENERATE(1, 4);
  CAPTURE(device, policy.name, n);
  HarnessOptions options;
  options.device = device;
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
    for (int32_t chunk : {1, 7, 16, 50}) {
      options.max_num_batched_tokens = chunk;
      options.max_num_seqs = std::min(8, chunk);
      options.prefix_caching = false;
      if (n > options.max_num_seqs) options.max_num_seqs = n;
      require_same(EngineHarness(model(format), options).generate(request), expected);
    }
  }
  SECTION("prefix hit") {
    EngineHarness harness(model(format), options);
    require_same(harness.generate(request), expected);
    const Collected again = harness.generate(request);
    REQUIRE(again.choices[0].usage.cached_tokens >= 128);
    require_same(again, expected);
    std::vector<int32_t> longer = ids;
    longer.insert(
        longer.end(), expected.choices[0].tokens.begin(), expected.choices[0].tokens.end());
    const std::vector<int32_t> tail = prompt(30, 9);
    longer.insert(longer.end(), tail.begin(), tail.end());
    const Request next = with_logprobs(longer, 20);
    const Collected fresh = EngineHarness(model(format), whole).generate(next);
    const Collected resumed = harness.generate(next);
    REQUIRE(resumed.choices[0].usage.cached_tokens >= 128);
    require_same(resumed, fresh);
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
    require_same(harness.generate(request), expected);
    for (const auto& other : others) REQUIRE(other->done());
  }
  SECTION("preemption") {
    // Ever smaller pools, down to one that cannot hold the longest sequence alone.
    options.max_num_batched_tokens = 32;
    uint64_t num_preemptions = 0;
    for (int64_t rows = 24; rows > 0; --rows) {
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
      require_same(*second, expected);
      REQUIRE(third->done());
      num_preemptions += harness.core().stats().num_preemptions;
    }
    if (!policy.faithful || n > 1) REQUIRE(num_preemptions > 0);
  }
}

TEST_CASE("Contract: a window as long as the context is dense, bit for bit", "[engine][unit]") {
  const std::string device = GENERATE("ref", "cpu");
  const bool faithful = GENERATE(false, true);
  const QuantFormat format = device == "ref" ? QuantFormat::kF32 : QuantFormat::kQ8_0;
  HarnessOptions options;
  options.device = device;
  const Request request = with_logprobs(prompt(200, 4), 60);
  const Collected dense = EngineHarness(model(format), options).generate(request);
  options.rules.assign(4, kv::RetentionRule{4, 260});
  options.faithful = faithful;
  require_same(EngineHarness(model(format), options).generate(request), dense);
  options.rules.assign(4, kv::RetentionRule{4, 60});
  const Collected narrow = EngineHarness(model(format), options).generate(request);
  REQUIRE(narrow.choices[0].logprobs.back().chosen.logprob !=
          dense.choices[0].logprobs.back().chosen.logprob);
}

TEST_CASE("Contract: window heads hold what the geometry says; usage tells", "[engine][unit]") {
  HarnessOptions options;
  options.rules = {kWindow, kFull, kWindow, kWindow};
  options.faithful = GENERATE(false, true);
  EngineHarness harness(model(QuantFormat::kF32), options);
  const Collected result = harness.generate(make_request(prompt(500, 5), 100));
  const Usage& usage = result.choices[0].usage;
  const kv::KvGeometry& geometry = harness.core().kv().geometry();
  REQUIRE(usage.kv_bytes == geometry.bytes_for(599, false));
  REQUIRE(usage.kv_bytes_dense == geometry.bytes_for(599, true));
  REQUIRE(usage.kv_bytes < usage.kv_bytes_dense / 2);
}

TEST_CASE("Contract: windows let more sequences into the same pool at once", "[engine][unit]") {
  HarnessOptions options;
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
