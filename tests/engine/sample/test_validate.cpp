#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>

#include "engine/request.h"

using namespace headwater;

namespace {

constexpr int32_t kVocab = 100;

struct Case {
  const char* param;
  std::function<void(SamplingParams&)> change;
  const char* message;  // "" = accepted
};

}  // namespace

TEST_CASE("validate: defaults and the edges of every bound", "[sample][unit]") {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  const Case cases[] = {
      {"", [](auto&) {}, ""},
      {"temperature", [](auto& p) { p.temperature = 0; }, ""},
      {"temperature", [](auto& p) { p.temperature = 100; }, ""},
      {"temperature",
       [](auto& p) { p.temperature = -0.5f; },
       "temperature must be in [0, 100], got -0.5"},
      {"temperature",
       [=](auto& p) { p.temperature = inf; },
       "temperature must be in [0, 100], got inf"},
      {"temperature",
       [=](auto& p) { p.temperature = nan; },
       "temperature must be in [0, 100], got nan"},
      {"top_p", [](auto& p) { p.top_p = 1e-6f; }, ""},
      {"top_p", [](auto& p) { p.top_p = 0; }, "top_p must be in (0, 1], got 0"},
      {"top_p", [](auto& p) { p.top_p = 1.5f; }, "top_p must be in (0, 1], got 1.5"},
      {"min_p", [](auto& p) { p.min_p = 1; }, ""},
      {"min_p", [](auto& p) { p.min_p = -0.25f; }, "min_p must be in [0, 1], got -0.25"},
      {"typical_p", [](auto& p) { p.typical_p = 0; }, "typical_p must be in (0, 1], got 0"},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = 10; }, ""},
      {"repetition_penalty",
       [](auto& p) { p.repetition_penalty = 0; },
       "repetition_penalty must be in (0, 10], got 0"},
      {"presence_penalty", [](auto& p) { p.presence_penalty = -2; }, ""},
      {"presence_penalty",
       [](auto& p) { p.presence_penalty = 2.5f; },
       "presence_penalty must be in [-2, 2], got 2.5"},
      {"frequency_penalty",
       [](auto& p) { p.frequency_penalty = -2.5f; },
       "frequency_penalty must be in [-2, 2], got -2.5"},
      {"top_k", [](auto& p) { p.top_k = -1; }, ""},
      {"top_k", [](auto& p) { p.top_k = 1 << 30; }, ""},
      {"top_k", [](auto& p) { p.top_k = -2; }, "top_k must be at least -1, got -2"},
      {"max_tokens", [](auto& p) { p.max_tokens = 0; }, ""},
      {"max_tokens", [](auto& p) { p.max_tokens = -1; }, "max_tokens must be at least 0, got -1"},
      {"min_tokens", [](auto& p) { p.min_tokens = 16; }, ""},
      {"min_tokens", [](auto& p) { p.min_tokens = -1; }, "min_tokens must be at least 0, got -1"},
      {"min_tokens",
       [](auto& p) { p.min_tokens = 17; },
       "min_tokens must be at most max_tokens (16), got 17"},
      {"logprobs", [](auto& p) { p.logprobs = 20; }, ""},
      {"logprobs", [](auto& p) { p.logprobs = 21; }, "logprobs must be in [-1, 20], got 21"},
      {"prompt_logprobs",
       [](auto& p) { p.prompt_logprobs = -2; },
       "prompt_logprobs must be in [-1, 20], got -2"},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{0, -100.0f}, {99, 100.0f}};
       },
       ""},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{7, 100.5f}};
       },
       "logit_bias of token 7 must be in [-100, 100], got 100.5"},
      {"logit_bias",
       [=](auto& p) {
         p.logit_bias = {{7, nan}};
       },
       "logit_bias of token 7 must be in [-100, 100], got nan"},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{100, 1.0f}};
       },
       "logit_bias names token id 100, but the model's vocabulary has ids 0 to 99"},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias.resize(1025, {0, 0.0f});
       },
       "logit_bias may have at most 1024 entries, got 1025"},
      {"stop_token_ids",
       [](auto& p) {
         p.stop_token_ids = {0, 99};
       },
       ""},
      {"stop_token_ids",
       [](auto& p) { p.stop_token_ids = {-1}; },
       "stop_token_ids names token id -1, but the model's vocabulary has ids 0 to 99"},
      {"stop_token_ids",
       [](auto& p) { p.stop_token_ids.resize(1025, 0); },
       "stop_token_ids may have at most 1024 entries, got 1025"},
  };
  for (const Case& c : cases) {
    SamplingParams params;
    c.change(params);
    const Status status = validate(params, kVocab);
    INFO(c.param << ": " << c.message);
    CHECK(status.message == c.message);
    CHECK(status.ok() == status.message.empty());
    if (!status.ok()) {
      CHECK(status.code == StatusCode::kInvalidArgument);
      CHECK(status.param == c.param);
    }
  }
}
