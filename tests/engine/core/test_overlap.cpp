// The host one step behind the device (EngineCore::Options::overlap), on RefOps, where a row's bits
// depend on nothing around it: every request hears what it hears without.
#include <catch2/catch.hpp>
#include <random>
#include <string_view>

#include "tests/support/engine_harness.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

const LoadedModel& model() {
  static const auto files = make_tiny_model();
  return *files;
}

std::vector<int32_t> prompt(int length, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(length));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 256);
  return ids;
}

struct Setting {
  const char* name;
  bool on_device;
  SamplingParams sampling;
};

// Of the tiny model's 300 tokens a nucleus often takes more than the 128 likeliest.
std::vector<Setting> settings() {
  std::vector<Setting> all;
  const auto add = [&](const char* name, bool on_device, auto set) {
    SamplingParams sampling;
    sampling.max_tokens = 24;
    sampling.seed = 17;
    sampling.ignore_eos = true;
    set(sampling);
    all.push_back({name, on_device, sampling});
  };
  using Params = SamplingParams;
  add("greedy", true, [](Params& p) { p.temperature = 0; });
  add("temperature", true, [](Params& p) { p.temperature = 0.8f; });
  add("top_k", true, [](Params& p) { p.top_k = 30; });
  add("top_k, top_p, min_p", true, [](Params& p) {
    p.top_k = 128;
    p.top_p = 0.8f;
    p.min_p = 0.01f;
  });
  add("top_p, decided", true, [](Params& p) {
    p.temperature = 0.05f;
    p.top_p = 0.7f;
  });
  add("top_p, often undecided", true, [](Params& p) {
    p.temperature = 1.5f;
    p.top_p = 0.95f;
  });
  add("min_p, sometimes undecided", true, [](Params& p) {
    p.temperature = 0.3f;
    p.min_p = 0.02f;
  });
  add("typical_p", false, [](Params& p) { p.typical_p = 0.6f; });
  add("top_k of many", false, [](Params& p) { p.top_k = 200; });
  add("penalties", false, [](Params& p) {
    p.repetition_penalty = 1.3f;
    p.frequency_penalty = 0.4f;
  });
  add("logit_bias", false, [](Params& p) { p.logit_bias = {{7, 3.0f}}; });
  add("min_tokens", false, [](Params& p) {
    p.temperature = 0;
    p.min_tokens = 6;
  });
  add("logprobs", false, [](Params& p) { p.logprobs = 2; });
  return all;
}

Request request_of(const SamplingParams& sampling, std::vector<int32_t> ids) {
  Request request;
  request.prompt = std::move(ids);
  request.sampling = sampling;
  return request;
}

void require_equal(const Collected& a, const Collected& b) {
  REQUIRE(a.choices.size() == b.choices.size());
  for (size_t i = 0; i < a.choices.size(); ++i) {
    CAPTURE(i);
    REQUIRE(a.choices[i].tokens == b.choices[i].tokens);
    REQUIRE(a.choices[i].finish == b.choices[i].finish);
    REQUIRE(a.choices[i].stop_token == b.choices[i].stop_token);
    REQUIRE(a.choices[i].error.code == b.choices[i].error.code);
    REQUIRE(a.choices[i].terminal_events == 1);
    REQUIRE(b.choices[i].terminal_events == 1);
    REQUIRE(a.choices[i].logprobs.size() == b.choices[i].logprobs.size());
  }
}

}  // namespace

TEST_CASE("Overlap: every way of sampling draws the same tokens", "[engine][unit]") {
  const Setting setting = GENERATE(from_range(settings()));
  CAPTURE(setting.name);
  HarnessOptions options;
  EngineHarness plain(model(), options);
  options.overlap = true;
  EngineHarness overlapped(model(), options);
  const Request request = request_of(setting.sampling, prompt(20, 1));
  const auto heard = overlapped.add(request);
  overlapped.core().step();
  CHECK(heard->choices[0].tokens.empty() == setting.on_device);  // it is under way
  overlapped.run();
  require_equal(plain.generate(request), *heard);
  CHECK(plain.core().stats().host_draws == 0);  // nobody waited
  const bool undecided = std::string_view(setting.name).ends_with("undecided");
  if (!undecided) CHECK((overlapped.core().stats().host_draws == 0) == setting.on_device);
}

TEST_CASE("Overlap: a busy engine, chunks, forks, stops and a full pool change no token",
          "[engine][unit]") {
  const int64_t kv_pages = GENERATE(4096, 4 * 14);  // the latter: two sequences
  const bool prefix_caching = GENERATE(true, false);
  const int32_t chunk = GENERATE(8, 64);
  CAPTURE(kv_pages, prefix_caching, chunk);
  std::vector<Request> requests;
  for (const Setting& setting : settings()) {
    const auto i = static_cast<uint32_t>(requests.size());
    Request request =
        request_of(setting.sampling, prompt(10 + static_cast<int>(7 * i % 40), i % 5));
    request.sampling.max_tokens = 40 + static_cast<int32_t>(i);
    requests.push_back(request);
    request.n = 1 + static_cast<int32_t>(i % 3);
    for (int32_t id = 0; id < 20; ++id) request.sampling.stop_token_ids.push_back(id);
    request.sampling.max_tokens = 30;
    requests.push_back(std::move(request));
  }
  Request scored = make_request(prompt(30, 9), 3);
  scored.sampling.prompt_logprobs = 1;
  requests.push_back(scored);
  scored.sampling.max_tokens = 0;
  requests.push_back(scored);

  HarnessOptions options;
  options.kv_pages = kv_pages;
  options.prefix_caching = prefix_caching;
  options.max_num_batched_tokens = chunk;
  const auto run = [&](bool overlap) {
    options.overlap = overlap;
    EngineHarness harness(model(), options);
    std::vector<std::shared_ptr<Collected>> heard;
    for (size_t i = 0; i < requests.size(); ++i) {
      heard.push_back(harness.add(requests[i]));
      for (size_t step = 0; step < i % 4; ++step) harness.core().step();
    }
    harness.run();
    REQUIRE(harness.core().idle());
    REQUIRE(harness.core().kv().byte_counts().held == 0);
    if (kv_pages < 100) REQUIRE(harness.core().stats().num_preemptions > 0);
    return heard;
  };
  const auto expected = run(false);
  const auto heard = run(true);
  for (size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    require_equal(*expected[i], *heard[i]);
  }
}

TEST_CASE("Overlap: no step is computed for a token that cannot come", "[engine][unit]") {
  HarnessOptions options;
  options.max_model_len = GENERATE(30, 1024);  // the context's end, or max_tokens
  const Request request = make_request(prompt(20, 1), 16);
  EngineHarness plain(model(), options);
  options.overlap = true;
  EngineHarness overlapped(model(), options);
  require_equal(plain.generate(request), overlapped.generate(request));
  REQUIRE(plain.core().stats().num_steps == overlapped.core().stats().num_steps);
}

TEST_CASE("Overlap: what the pool cannot hold fails behind its last token", "[engine][unit]") {
  HarnessOptions options;
  options.kv_pages = 4 * 4;
  const Request request = make_request(prompt(30, 2), 200);
  const Collected expected = EngineHarness(model(), options).generate(request);
  REQUIRE(expected.choices[0].error.code == StatusCode::kResourceExhausted);
  REQUIRE(expected.choices[0].tokens.size() > 10);
  options.overlap = true;
  require_equal(expected, EngineHarness(model(), options).generate(request));
}

TEST_CASE("Overlap: whoever leaves while a step is under way leaves alone", "[engine][unit]") {
  HarnessOptions options;
  const Collected expected =
      EngineHarness(model(), options).generate(make_request(prompt(20, 3), 60));
  options.overlap = true;
  EngineHarness harness(model(), options);
  const int way = GENERATE(0, 1, 2, 3);
  const int steps = GENERATE(1, 2, 9);
  CAPTURE(way, steps);
  Request leaver = make_request(prompt(25, 4), 60);
  leaver.id = 99;
  if (way == 3) leaver.deadline = Clock::now() + std::chrono::milliseconds(5);
  int events = 0;
  const auto left = harness.add(leaver, [&] { return way != 2 || ++events < steps; });
  const auto stays = harness.add(make_request(prompt(20, 3), 60));
  for (int i = 0; i < steps; ++i) harness.core().step();
  if (way == 0) harness.core().end(99, Status::Ok());
  if (way == 1) harness.core().stop_choice(99, 0);
  harness.run();
  REQUIRE(harness.core().idle());
  REQUIRE(harness.core().kv().byte_counts().held == 0);
  REQUIRE(left->choices[0].terminal_events == 1);
  require_equal(expected, *stays);
}

TEST_CASE("Overlap: an engine that ends with a step under way answers everybody",
          "[engine][unit]") {
  std::shared_ptr<Collected> heard;
  {
    HarnessOptions options;
    options.overlap = true;
    EngineHarness harness(model(), options);
    heard = harness.add(make_request(prompt(20, 3), 60));
    for (int i = 0; i < 3; ++i) harness.core().step();
  }
  REQUIRE(heard->choices[0].terminal_events == 1);
  REQUIRE(heard->choices[0].tokens.size() == 2);
}
