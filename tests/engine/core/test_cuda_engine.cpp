// The engine on a GPU against the engine on RefOps, over retention rules, chunk sizes, prefix hits,
// forks and preemption: the device's page tables follow the host's, and every token's logprob is
// RefOps'. Not to the bit: pages are f16 there, f32 here, and long chunks multiply in TF32.
#include <catch2/catch.hpp>
#include <random>

#include "tests/support/engine_harness.h"
#include "tests/support/skip.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

const kv::RetentionRule kFull{};
const kv::RetentionRule kWindow{4, 40};
const kv::RetentionRule kRazor{.sink_tokens = 4,
                               .recent_tokens = 24,
                               .growth_ppm = 200'000,
                               .block_tokens = 16,
                               .compensate = true};
const kv::RetentionRule kShard{
    .recent_tokens = 17, .block_tokens = 16, .shard_stride = 3, .shard_phase = 1};

struct Policy {
  const char* name;
  std::vector<kv::RetentionRule> rules;  // tiny model: 2 layers x 2 kv heads
  bool faithful;
};

std::vector<Policy> policies() {
  return {{"dense", {}, false},
          {"window, streaming", {kWindow, kFull, kWindow, kWindow}, false},
          {"window, faithful", {kWindow, kFull, kWindow, kWindow}, true},
          {"razor, streaming", {kRazor, kFull, kRazor, kRazor}, false},
          {"razor, faithful", {kRazor, kFull, kRazor, kRazor}, true},
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

// Every prompt token's logprob, given those before it.
std::vector<float> prompt_logprobs(EngineHarness& harness, const std::vector<int32_t>& ids) {
  Request request = make_request(ids, 1);
  request.sampling.prompt_logprobs = 1;
  std::vector<float> values;
  for (const TokenLogprobs& token : harness.generate(request).prompt_logprobs)
    values.push_back(token.chosen.logprob);
  REQUIRE(values.size() == ids.size() - 1);
  return values;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const float difference = std::abs(a[i] - b[i]);
    largest = difference <= largest ? largest : difference;  // NaN stays
  }
  return largest;
}

}  // namespace

TEST_CASE("CudaOps: every chunk size and retention rule gives RefOps' logprobs", "[engine][cuda]") {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) return skip(obstacle);
  const Policy policy = GENERATE(from_range(policies()));
  const QuantFormat format = GENERATE(QuantFormat::kF32, QuantFormat::kQ8_0);
  const int32_t chunk = GENERATE(1, 7, 64, 512);
  CAPTURE(policy.name, static_cast<int>(format), chunk);
  HarnessOptions options;
  options.rules = policy.rules;
  options.faithful = policy.faithful;
  options.max_num_batched_tokens = chunk;
  options.max_num_seqs = std::min(8, chunk);
  options.prefix_caching = false;
  const std::vector<int32_t> ids = prompt(300, 3);
  EngineHarness reference(model(format), options);
  options.device = {"cuda", false};
  EngineHarness device(model(format), options);
  const float largest =
      largest_difference(prompt_logprobs(device, ids), prompt_logprobs(reference, ids));
  CAPTURE(largest);
  REQUIRE(largest < kCudaTolerance);
}

TEST_CASE("CudaOps: hits, forks, neighbours and preemption leave a request its logprobs",
          "[engine][cuda]") {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) return skip(obstacle);
  const Policy policy = GENERATE(from_range(policies()));
  CAPTURE(policy.name);
  HarnessOptions options;
  options.rules = policy.rules;
  options.faithful = policy.faithful;
  const std::vector<int32_t> ids = prompt(250, 4);
  EngineHarness reference(model(QuantFormat::kF32), options);
  const std::vector<float> expected = prompt_logprobs(reference, ids);

  options.device = {"cuda", false};
  options.max_num_batched_tokens = 48;
  options.kv_pages = 4 * 40;  // two long sequences at a time, dense
  EngineHarness device(model(QuantFormat::kF32), options);
  Request forked = make_request(prompt(90, 5), 60);
  forked.n = 3;
  const auto first = device.add(forked);
  const auto second = device.add(make_request(prompt(200, 6), 100));
  for (int i = 0; i < 20; ++i) device.core().step();
  const float largest = largest_difference(prompt_logprobs(device, ids), expected);
  CAPTURE(largest);
  REQUIRE(largest < kCudaTolerance);
  REQUIRE(first->done());
  REQUIRE(second->done());
  device.generate(make_request(ids, 1));  // the others may have pushed the prompt out
  // What follows a hit is decoded from pages that others wrote.
  Request request = make_request(ids, 30);
  request.sampling.logprobs = 1;
  const Collected::Choice hit = device.generate(request).choices[0];
  REQUIRE(hit.usage.cached_tokens > 0);
  std::vector<int32_t> longer = ids;
  longer.insert(longer.end(), hit.tokens.begin(), hit.tokens.end());
  std::vector<float> generated;
  for (const TokenLogprobs& token : hit.logprobs) generated.push_back(token.chosen.logprob);
  if (policy.faithful) return;  // there the end of the prompt matters
  const std::vector<float> all = prompt_logprobs(reference, longer);
  REQUIRE(largest_difference(generated, {all.end() - 30, all.end()}) < kCudaTolerance);
}
