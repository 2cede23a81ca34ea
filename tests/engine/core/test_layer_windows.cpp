// Layers that see a window, and models whose frequencies depend on the length: what the model says
// holds whatever policy, request, chunk, neighbour or device; and a window's old pages are
// free.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <random>

#include "engine/attention/policy_table.h"
#include "engine/io/json_object.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/rope_scaling.h"
#include "tests/support/engine_harness.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

constexpr int32_t kLayerWindow = 40;

// The tiny model, its first layer with a window.
std::unique_ptr<LoadedModel> windowed(int32_t window = kLayerWindow) {
  auto files = make_tiny_model();
  files->spec.layers[0].window = window;
  return files;
}

// The tiny model with other frequencies for more than 64 tokens.
std::unique_ptr<LoadedModel> stretched() {
  auto files = make_tiny_model();
  RopeScaling scaling;
  scaling.rule = RopeRule::kLinear;
  scaling.factor = 3;
  files->spec.long_ropes = {make_rope(RopePairing::kAdjacent, 32, 10000.0, scaling)};
  files->spec.long_after = 64;
  return files;
}

std::vector<int32_t> prompt(int length, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(length));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 256);
  return ids;
}

Request with_logprobs(std::vector<int32_t> ids, int32_t max_tokens) {
  Request request = make_request(std::move(ids), max_tokens);
  request.sampling.logprobs = 3;
  return request;
}

struct Policy {
  const char* name;
  std::vector<kv::RetentionRule> rules;
  bool faithful;
};

const kv::RetentionRule kFull{};
const kv::RetentionRule kShort{.sink_tokens = 4, .recent_tokens = 24};
const kv::RetentionRule kLong{.sink_tokens = 4, .recent_tokens = 90};
const kv::RetentionRule kRazor{.sink_tokens = 4,
                               .recent_tokens = 24,
                               .growth_ppm = 200'000,
                               .block_tokens = 16,
                               .compensate = true};

std::vector<Policy> policies() {
  return {{"dense", {}, false},
          {"short windows", {kShort, kFull, kShort, kFull}, false},
          {"short windows, faithful", {kShort, kFull, kShort, kFull}, true},
          {"long windows", {kLong, kLong, kLong, kFull}, false},
          {"razor", {kRazor, kFull, kRazor, kRazor}, true}};
}

}  // namespace

TEST_CASE("Layer windows: chunks, prefix hits, preemption and forks change no bit",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const Policy policy = GENERATE(from_range(policies()));
  const int32_t n = GENERATE(1, 3);
  CAPTURE(*device, policy.name, n);
  const auto files = windowed();
  HarnessOptions options;
  options.device = *device;
  options.rules = policy.rules;
  options.faithful = policy.faithful;
  HarnessOptions whole = options;
  whole.max_num_batched_tokens = 1024;
  whole.prefix_caching = false;
  Request request = with_logprobs(prompt(150, 3), 30);
  request.n = n;
  request.sampling.temperature = 0.8f;
  request.sampling.seed = 5;
  const Collected expected = EngineHarness(*files, whole).generate(request);

  SECTION("chunked prefill") {
    options.prefix_caching = false;
    for (const int32_t chunk : {4, 7, 50}) {
      options.max_num_batched_tokens = chunk;
      options.max_num_seqs = std::min(8, chunk);
      require_same(*device, EngineHarness(*files, options).generate(request), expected);
    }
  }
  SECTION("prefix hit") {
    EngineHarness harness(*files, options);
    require_same(*device, harness.generate(request), expected);
    const Collected again = harness.generate(request);
    REQUIRE(again.choices[0].usage.cached_tokens >= 128);
    require_same(*device, again, expected);
  }
  SECTION("preemption") {
    options.max_num_batched_tokens = 32;
    uint64_t num_preemptions = 0;
    for (int64_t rows = 24; rows > 0; --rows) {
      options.kv_pages = 4 * rows;
      EngineHarness harness(*files, options);
      const auto first = harness.add(with_logprobs(prompt(100, 30), 60));
      const auto second = harness.add(request);
      harness.run();
      if (std::ranges::any_of(second->choices, [](const Collected::Choice& choice) {
            return choice.finish == FinishReason::kError;
          }))
        break;
      require_same(*device, *second, expected);
      num_preemptions += harness.core().stats().num_preemptions;
    }
    if (n > 1) REQUIRE(num_preemptions > 0);
  }
}

TEST_CASE("Layer windows: a request may lift a policy, not the model's window",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const auto files = windowed();
  HarnessOptions options;
  options.device = *device;
  const Request request = with_logprobs(prompt(150, 3), 30);
  const Collected dense = EngineHarness(*files, options).generate(request);
  options.rules = {kShort, kShort, kShort, kShort};
  EngineHarness compressed(*files, options);
  Request lifted = request;
  lifted.attention.policy = "dense";
  require_same(*device, compressed.generate(lifted), dense);
  // The window is felt, and one as long as the sequence is none.
  const auto logprob = [](const Collected& c) { return c.choices[0].logprobs[5].chosen.logprob; };
  options.rules = {};
  const Collected open = EngineHarness(*make_tiny_model(), options).generate(request);
  REQUIRE(logprob(open) != logprob(dense));
  require_same(*device, EngineHarness(*windowed(180), options).generate(request), open);
}

TEST_CASE("Layer windows: what heads keep is what policy and layer both leave", "[engine][unit]") {
  const auto files = windowed();
  std::vector<kv::RetentionRule> rules = {kShort, kLong, kShort, kRazor};
  fit_to_layers(files->spec, rules);
  CHECK(rules[0] == kv::RetentionRule{.recent_tokens = 24, .layer_window = kLayerWindow});
  CHECK(rules[1] == kv::RetentionRule{.layer_window = kLayerWindow});
  CHECK(rules[2] == kShort);
  CHECK(rules[3] == kRazor);
  CHECK(rules[1].keeps_all_seen());
  CHECK_FALSE(rules[1].keeps_all());
  CHECK(rules[1].window_start(39) == 0);
  CHECK(rules[1].window_start(40) == 1);
  CHECK(rules[0].window_start(40) == 17);
  CHECK(rules[0].layer_start(40) == 1);
}

namespace {

ModelSpec spec_of(const char* config) {
  return read_config_arch(find_hf_arch("gemma3_text", ""), JsonObject::parse(config, "config.json"))
      .spec;
}

struct Held {
  int64_t bytes, dense_bytes;
};

// A sequence of so many tokens, in chunks, dense, in a pool that holds its peak and no more.
Held held_of(const ModelSpec& spec, int32_t num_tokens, int32_t chunk) {
  const HeadShape& heads = spec.layers[0].heads;
  std::vector<kv::RetentionRule> rules(spec.layers.size() *
                                       static_cast<size_t>(heads.num_kv_heads));
  fit_to_layers(spec, rules);
  const PageShape page{DType::kF16, heads.head_dim, 16, 0};
  const kv::KvGeometry geometry(
      static_cast<int32_t>(spec.layers.size()), heads.num_kv_heads, rules, page);
  const int64_t peak = geometry.peak_bytes(num_tokens, {}, chunk);
  kv::KvManager kv(geometry, {peak, page.page_bytes(), 1, num_tokens, false});
  kv::SequenceKv seq = kv.create({});
  const std::vector<int32_t> ids(static_cast<size_t>(num_tokens), 7);
  for (int32_t end = chunk; end <= num_tokens; end += chunk) {
    REQUIRE(kv.reserve(seq, end));
    kv.commit(seq, std::span(ids).first(static_cast<size_t>(end)));
  }
  const Held held{kv.held_bytes(seq), geometry.dense_cache_bytes(num_tokens)};
  CHECK(held.bytes == geometry.bytes_for(num_tokens, true));
  CHECK(kv.byte_counts().held == held.bytes);
  kv.release(seq);
  return held;
}

}  // namespace

TEST_CASE("Layer windows: KV bytes of gemma3 at 8,192 tokens", "[engine][unit]") {
  struct Shape {
    const char* name;
    const char* config;
    int64_t kv_heads, full_layers, window_layers, window;
  };
  const Shape shapes[] = {
      {"gemma-3-1b",
       R"({"hidden_size":1152,"intermediate_size":6912,"num_hidden_layers":26,
           "num_attention_heads":4,"num_key_value_heads":1,"head_dim":256,"sliding_window":512,
           "sliding_window_pattern":6,"max_position_embeddings":32768,"vocab_size":262144})",
       1,
       4,
       22,
       512},
      {"gemma-3-4b",
       R"({"hidden_size":2560,"intermediate_size":10240,"num_hidden_layers":34,
           "sliding_window":1024})",
       4,
       5,
       29,
       1024},
  };
  constexpr int64_t kTokens = 8192;
  for (const Shape& shape : shapes) {
    const Held held = held_of(spec_of(shape.config), kTokens, 512);
    const int64_t token_bytes = shape.kv_heads * 2 * 256 * 2;  // K and V of a layer, f16
    std::printf("%s at %lld tokens: %lld bytes held, %lld if every layer kept all (%.1f %%)\n",
                shape.name,
                static_cast<long long>(kTokens),
                static_cast<long long>(held.bytes),
                static_cast<long long>(held.dense_bytes),
                100.0 * static_cast<double>(held.bytes) / static_cast<double>(held.dense_bytes));
    CHECK(held.dense_bytes == (shape.full_layers + shape.window_layers) * kTokens * token_bytes);
    CHECK(held.bytes ==
          (shape.full_layers * kTokens + shape.window_layers * shape.window) * token_bytes);
  }
}

TEST_CASE("Long frequencies: a sequence that grows long is what it would be if it began so",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  CAPTURE(*device);
  const auto files = stretched();
  HarnessOptions options;
  options.device = *device;
  options.max_num_batched_tokens = 20;
  EngineHarness harness(*files, options);
  const std::vector<int32_t> ids = prompt(50, 3);
  // Beside it: one that stays short, one that is long from the start, the same again from the
  // index.
  const auto grows = harness.add(with_logprobs(ids, 30));
  const auto short_one = harness.add(with_logprobs(prompt(20, 4), 30));
  const auto long_one = harness.add(with_logprobs(prompt(100, 5), 30));
  harness.run();
  require_same(*device, harness.generate(with_logprobs(ids, 30)), *grows);

  HarnessOptions alone = options;
  alone.max_num_batched_tokens = 1024;
  alone.prefix_caching = false;
  const auto check = [&](std::vector<int32_t> tokens, const Collected& got) {
    const Collected::Choice& choice = got.choices[0];
    REQUIRE(choice.tokens.size() == 30);
    for (size_t i = 0; i < choice.tokens.size(); ++i) {
      CAPTURE(tokens.size());
      const Collected next = EngineHarness(*files, alone).generate(with_logprobs(tokens, 1));
      const TokenLogprobs &one = next.choices[0].logprobs[0], &other = choice.logprobs[i];
      REQUIRE(std::abs(one.top[0].logprob - other.top[0].logprob) <= tolerance(*device));
      if (device->exact) REQUIRE(next.choices[0].tokens[0] == choice.tokens[i]);
      tokens.push_back(choice.tokens[i]);
    }
  };
  check(ids, *grows);
  check(prompt(20, 4), *short_one);
  check(prompt(100, 5), *long_one);
}
