// Probe: rows under trial are what the engine computes in faithful mode, bit for bit.
#include <catch2/catch.hpp>
#include <random>

#include "engine/calibrate/probe.h"
#include "engine/sample/sampler.h"
#include "tests/support/engine_harness.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

using Rules = std::vector<kv::RetentionRule>;  // tiny model: 2 layers x 2 kv heads

const kv::RetentionRule kFull{};
const kv::RetentionRule kWindow{4, 40};
const kv::RetentionRule kRazor{.sink_tokens = 4,
                               .recent_tokens = 24,
                               .growth_ppm = 200'000,
                               .block_tokens = 16,
                               .compensate = true};
const kv::RetentionRule kRazorWide{
    .sink_tokens = 20, .recent_tokens = 20, .block_tokens = 32, .compensate = true};
const kv::RetentionRule kSpan{.sink_tokens = 4, .recent_tokens = 16, .growth_ppm = 250'000};
const kv::RetentionRule kShard{
    .recent_tokens = 17, .block_tokens = 16, .shard_stride = 3, .shard_phase = 1};

// One after another on the same prompt, so that each has to undo what the one before it left.
std::vector<Rules> trials() {
  return {{kFull, kFull, kFull, kFull},
          {kWindow, kFull, kShard, kWindow},
          {kRazor, kFull, kRazor, kRazorWide},
          {kRazor, kRazor, kRazor, kRazor},
          {kRazorWide, kRazor, kFull, kSpan},
          {kRazor, kRazor, kRazor, kRazor}};
}

const LoadedModel& model(const std::string& device) {
  static const auto f32 = make_tiny_model();
  static const auto q8 = [] {
    TinyModelOptions options;
    options.format = QuantFormat::kQ8_0;
    options.embedding_format = QuantFormat::kQ8_0;
    return make_tiny_model(options);
  }();
  return device == "ref" ? *f32 : *q8;
}

std::vector<int32_t> random_ids(int length, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(length));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 256);
  return ids;
}

struct Device {
  ThreadPool pool{2};
  std::unique_ptr<Ops> ops;
  Model network;
  Probe probe;

  Device(const TestDevice& device, const Model::Limits& limits)
      : ops(testing::make_ops(device, pool)),
        network(model(device.name), *ops, limits),
        probe(network, *ops) {}
};

}  // namespace

TEST_CASE("Probe: rows under trial equal the engine's, bit for bit", "[calibrate][unit][device]") {
  const auto device = each_device();
  if (!device || !device->exact) return;
  const int32_t length = GENERATE(1, 150, 160);
  CAPTURE(*device, length);
  constexpr int32_t kAnswer = 40;
  Device mine(*device, {64, 9});
  const std::vector<int32_t> ids = random_ids(length, 3);
  ProbePrompt prompt = mine.probe.read(ids, kAnswer);

  for (const Rules& rules : trials()) {
    HarnessOptions options;
    options.device = *device;
    options.rules = rules;
    options.faithful = true;
    Request request = make_request(ids, kAnswer);
    request.sampling.logprobs = 20;
    const Collected expected = EngineHarness(model(device->name), options).generate(request);
    const Collected::Choice& choice = expected.choices[0];
    REQUIRE(choice.tokens.size() == kAnswer);

    REQUIRE(mine.probe.greedy(prompt, rules, kAnswer, {}) == choice.tokens);
    const std::vector<float> behind = mine.probe.logits(prompt, rules, choice.tokens);
    const auto vocab = static_cast<size_t>(mine.probe.vocab_size());
    REQUIRE(behind.size() == kAnswer * vocab);
    for (size_t i = 0; i < choice.tokens.size(); ++i) {
      const std::span<const float> row =
          i == 0 ? prompt.logits() : std::span(behind).subspan((i - 1) * vocab, vocab);
      const TokenLogprobs got = logprobs_of(row, choice.tokens[i], 20);
      REQUIRE(got.chosen.logprob == choice.logprobs[i].chosen.logprob);
      REQUIRE(got.top.size() == choice.logprobs[i].top.size());
      for (size_t k = 0; k < got.top.size(); ++k) {
        REQUIRE(got.top[k].token == choice.logprobs[i].top[k].token);
        REQUIRE(got.top[k].logprob == choice.logprobs[i].top[k].logprob);
      }
    }
  }
}

TEST_CASE("Probe: greedy stops before a stop token and continues behind forced ones",
          "[calibrate][unit]") {
  Device mine({"cpu"}, {64, 16});
  const Rules rules = {kRazor, kFull, kRazor, kWindow};
  ProbePrompt prompt = mine.probe.read(random_ids(100, 4), 64);
  const std::vector<int32_t> answer = mine.probe.greedy(prompt, rules, 20, {});
  REQUIRE(answer.size() == 20);

  const auto first = std::ranges::find(answer, answer[7]);
  const std::vector<int32_t> stopped =
      mine.probe.greedy(prompt, rules, 20, std::span(&answer[7], 1));
  REQUIRE(stopped == std::vector<int32_t>(answer.begin(), first));
  REQUIRE(mine.probe.greedy(prompt, rules, 0, {}).empty());

  const std::vector<int32_t> rest =
      mine.probe.greedy(prompt, rules, 15, {}, std::span(answer).first(5));
  REQUIRE(rest == std::vector<int32_t>(answer.begin() + 5, answer.end()));
}

TEST_CASE("Probe: a trial changes what it should", "[calibrate][unit]") {
  Device mine({"ref"}, {64, 16});
  ProbePrompt prompt = mine.probe.read(random_ids(150, 5), 16);
  const std::vector<int32_t> follow = random_ids(16, 6);
  const std::vector<float> dense = mine.probe.logits(prompt, Rules(4, kFull), follow);
  const std::vector<float> windows = mine.probe.logits(prompt, Rules(4, kWindow), follow);
  const std::vector<float> razor = mine.probe.logits(prompt, Rules(4, kRazor), follow);
  REQUIRE(windows != dense);
  REQUIRE(razor != dense);
  REQUIRE(mine.probe.logits(prompt, Rules(4, kFull), follow) == dense);
  // A second prompt does not disturb the first.
  ProbePrompt other = mine.probe.read(random_ids(80, 7), 16);
  mine.probe.logits(other, Rules(4, kRazor), follow);
  REQUIRE(mine.probe.logits(prompt, Rules(4, kRazor), follow) == razor);
}

TEST_CASE("Probe: a layer's window holds in the prompt and under trial", "[calibrate][unit]") {
  const auto files = make_tiny_model();
  files->spec.layers[0].window = 40;
  const std::vector<int32_t> ids = random_ids(150, 5);
  for (const Rules& rules : trials()) {
    HarnessOptions options;
    options.rules = rules;
    options.faithful = true;
    EngineHarness harness(*files, options);
    Request request = make_request(ids, 20);
    request.sampling.logprobs = 0;
    const Collected::Choice expected = harness.generate(request).choices[0];

    ThreadPool pool(2);
    const auto ops = make_ref_ops(pool);
    Model network(*files, *ops, {64, 64});
    Probe probe(network, *ops);
    ProbePrompt prompt = probe.read(ids, 20);
    CHECK(probe.greedy(prompt, rules, 20, {}) == expected.tokens);
  }
}
