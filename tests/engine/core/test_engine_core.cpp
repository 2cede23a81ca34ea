#include <catch2/catch.hpp>
#include <cmath>

#include "tests/support/engine_harness.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

const LoadedModel& model() {
  static const auto files = make_tiny_model();
  return *files;
}

std::vector<int32_t> text(const std::string& bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

TEST_CASE("EngineCore: stop ids, eos, length and max_tokens 0 end a choice",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  EngineHarness harness(model(), {.device = *device});
  const Collected free = harness.generate(make_request(text("Hello there"), 30));
  REQUIRE(free.choices[0].finish == FinishReason::kLength);
  REQUIRE(free.choices[0].tokens.size() == 30);
  REQUIRE(free.choices[0].usage.prompt_tokens == 11);

  Request stop = make_request(text("Hello there"), 30);
  const int32_t id = free.choices[0].tokens[7];
  stop.sampling.stop_token_ids = {id};
  const Collected stopped = harness.generate(stop);
  REQUIRE(stopped.choices[0].finish == FinishReason::kStop);
  REQUIRE(stopped.choices[0].stop_token == id);
  REQUIRE(stopped.choices[0].tokens.back() == id);

  Request eos = make_request(text("Hello there"), 30);
  eos.sampling.ignore_eos = false;
  eos.sampling.logit_bias = {{kTinyEos, 100.0f}};
  REQUIRE(harness.generate(eos).choices[0].finish == FinishReason::kStop);
  eos.sampling.min_tokens = 5;
  REQUIRE(harness.generate(eos).choices[0].tokens.size() == 6);

  const Collected none = harness.generate(make_request(text("Hello there"), 0));
  REQUIRE(none.choices[0].tokens.empty());
  REQUIRE(none.choices[0].finish == FinishReason::kLength);

  HarnessOptions options{.device = *device};
  options.max_model_len = 20;
  REQUIRE(EngineHarness(model(), options)
              .generate(make_request(text("Hello there"), 30))
              .choices[0]
              .tokens.size() == 9);
}

TEST_CASE("EngineCore: prompt logprobs equal the logprobs of generating the same tokens",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  HarnessOptions options{.device = *device};
  options.max_num_batched_tokens = GENERATE(9, 64);
  EngineHarness harness(model(), options);
  Request request = make_request(text("What is the"), 50);
  request.sampling.logprobs = 2;
  const Collected generated = harness.generate(request);
  Request echo = make_request(text("What is the"), 0);
  echo.prompt.insert(
      echo.prompt.end(), generated.choices[0].tokens.begin(), generated.choices[0].tokens.end());
  echo.sampling.prompt_logprobs = 2;
  const Collected scored = harness.generate(echo);
  REQUIRE(scored.prompt_logprobs.size() == 60);
  for (size_t i = 0; i < 50; ++i) {
    const TokenLogprobs& a = scored.prompt_logprobs[10 + i];
    const TokenLogprobs& b = generated.choices[0].logprobs[i];
    REQUIRE(a.chosen.token == b.chosen.token);
    REQUIRE(std::abs(a.chosen.logprob - b.chosen.logprob) <= tolerance(*device));
    REQUIRE(std::abs(a.top[1].logprob - b.top[1].logprob) <= tolerance(*device));
  }
}

TEST_CASE("EngineCore: cancelling frees pages within the step and ends every choice once",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  EngineHarness harness(model(), {.device = *device});
  Request request = make_request(text("A long story"), 500);
  request.id = 77;
  request.n = 3;
  const auto collected = harness.add(request);
  const int steps = GENERATE(0, 1, 5);
  for (int i = 0; i < steps; ++i) harness.core().step();
  harness.core().end(77, Status::Ok());
  REQUIRE(harness.core().kv().byte_counts().held == 0);
  REQUIRE(harness.core().idle());
  for (const Collected::Choice& choice : collected->choices) {
    REQUIRE(choice.terminal_events == 1);
    REQUIRE(choice.finish == FinishReason::kAbort);
  }
}

TEST_CASE("EngineCore: one choice may stop, its siblings go on", "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  EngineHarness harness(model(), {.device = *device});
  Request request = make_request(text("Three of them"), 20);
  request.id = 5;
  request.n = 3;
  const auto collected = harness.add(request);
  for (int i = 0; i < 4; ++i) harness.core().step();
  harness.core().stop_choice(5, 1);
  harness.core().stop_choice(5, 9);
  harness.run();
  REQUIRE(collected->choices[0].tokens.size() == 20);
  REQUIRE(collected->choices[1].finish == FinishReason::kStop);
  REQUIRE(collected->choices[1].tokens.size() < 20);
  REQUIRE(collected->choices[2].tokens.size() == 20);
}

TEST_CASE("EngineCore: a sink that stops listening is dropped, its neighbour is not",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  EngineHarness harness(model(), {.device = *device});
  int events = 0;
  const auto gone =
      harness.add(make_request(text("Nobody reads this"), 500), [&] { return ++events < 4; });
  const auto stays = harness.add(make_request(text("Somebody reads this"), 40));
  harness.run();
  REQUIRE(gone->choices[0].finish == FinishReason::kAbort);
  REQUIRE(gone->choices[0].tokens.size() == 4);
  REQUIRE(stays->choices[0].tokens.size() == 40);
}

TEST_CASE("EngineCore: deadlines end what is late, waiting or running", "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  HarnessOptions options{.device = *device};
  options.max_num_seqs = 1;
  EngineHarness harness(model(), options);
  Request late = make_request(text("too late"), 1000);
  late.deadline = Clock::now() - std::chrono::seconds(1);
  const auto in_time = harness.add(make_request(text("in time"), 10));
  const auto expired = harness.add(late);
  REQUIRE(harness.core().next_deadline() == late.deadline);
  harness.run();
  REQUIRE(expired->choices[0].error.code == StatusCode::kDeadlineExceeded);
  REQUIRE(expired->choices[0].finish == FinishReason::kAbort);
  REQUIRE(in_time->choices[0].tokens.size() == 10);
}

TEST_CASE("EngineCore: choices differ, share the prompt's pages and are reproducible",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  EngineHarness harness(model(), {.device = *device});
  Request request = make_request(std::vector<int32_t>(100, 65), 8);
  request.sampling.temperature = 1.5f;
  request.sampling.seed = 3;
  request.n = 4;
  const auto collected = harness.add(request);
  harness.core().step();
  harness.core().step();
  harness.core().step();
  const int64_t one = harness.core().kv().geometry().bytes_for(103, true);
  const int64_t page = harness.core().kv().geometry().bytes_for(1, true);
  REQUIRE(harness.core().kv().byte_counts().held <= one + 3 * page);
  harness.run();
  REQUIRE(collected->choices[0].tokens != collected->choices[1].tokens);
  if (!device->exact) return;
  const Collected again = harness.generate(request);
  for (size_t c = 0; c < 4; ++c) REQUIRE(again.choices[c].tokens == collected->choices[c].tokens);
  request.n = 1;
  REQUIRE(harness.generate(request).choices[0].tokens == collected->choices[0].tokens);
}

TEST_CASE("EngineCore: destruction answers everybody", "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  std::shared_ptr<Collected> collected;
  {
    EngineHarness harness(model(), {.device = *device});
    collected = harness.add(make_request(text("never done"), 900));
    harness.core().step();
  }
  REQUIRE(collected->choices[0].terminal_events == 1);
  REQUIRE(collected->choices[0].error.code == StatusCode::kUnavailable);
}

TEST_CASE("EngineCore: what the pool can never hold is refused with the reason",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  HarnessOptions options{.device = *device};
  options.kv_pages = 4 * 4;
  EngineHarness harness(model(), options);
  const Collected lost = harness.generate(make_request(std::vector<int32_t>(100, 66), 5));
  REQUIRE(lost.choices[0].finish == FinishReason::kError);
  REQUIRE(lost.choices[0].error.message.find("kv-cache-bytes") != std::string::npos);
  REQUIRE(harness.generate(make_request(text("short"), 5)).choices[0].tokens.size() == 5);
}
