#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>

#include "engine/sample/sampler.h"
#include "kernels/sample/philox.h"

using namespace headwater;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint64_t kSeed = 42;

SamplingParams greedy() {
  SamplingParams params;
  params.temperature = 0.0f;
  return params;
}

int32_t sample_one(Sampler& sampler, std::vector<float> logits, int32_t position) {
  SamplerScratch scratch;
  return sampler.sample(logits, position, scratch).token;
}

int32_t sample_one(const SamplingParams& params,
                   const std::vector<float>& logits,
                   int32_t position = 0,
                   std::vector<int32_t> prompt = {}) {
  Sampler sampler(params, static_cast<int32_t>(logits.size()), {}, kSeed, 0, prompt);
  return sample_one(sampler, logits, position);
}

std::vector<float> noise(int64_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

std::vector<int32_t> sample_run(Sampler& sampler, int32_t begin, int32_t end) {
  SamplerScratch scratch;
  std::vector<int32_t> tokens;
  for (int32_t i = begin; i < end; ++i) {
    auto logits = noise(500, 100 + i);
    tokens.push_back(sampler.sample(logits, i, scratch).token);
    sampler.accept(tokens.back());
  }
  return tokens;
}

}  // namespace

TEST_CASE("Philox: known answers of Random123", "[sample][unit]") {
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) ==
        std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("Sampler: greedy is the exact argmax, lowest id among equals", "[sample][unit]") {
  auto logits = noise(5003, 3);
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  CHECK(sample_one(greedy(), logits) == best);
  logits[4999] = logits[4321] = logits[best] + 1.0f;
  CHECK(sample_one(greedy(), logits) == 4321);
  CHECK(sample_one(greedy(), {1.0f, std::nextafter(1.0f, 2.0f)}) == 1);
}

TEST_CASE("Sampler: the same seed draws the same tokens, others do not", "[sample][unit]") {
  SamplingParams params;
  params.top_p = 0.95f;
  params.repetition_penalty = 1.2f;
  const std::vector<int32_t> prompt = {1, 2, 3};
  const auto make = [&](uint64_t seed, int32_t choice) {
    return Sampler(params, 500, {}, seed, choice, prompt);
  };
  Sampler first = make(kSeed, 0);
  const auto tokens = sample_run(first, 0, 40);

  Sampler again = make(kSeed, 0);
  CHECK(sample_run(again, 0, 40) == tokens);
  Sampler other_seed = make(kSeed + 1, 0), high_bits = make(kSeed + (uint64_t{1} << 40), 0);
  Sampler other_choice = make(kSeed, 1);
  CHECK(sample_run(other_seed, 0, 40) != tokens);
  CHECK(sample_run(high_bits, 0, 40) != tokens);
  CHECK(sample_run(other_choice, 0, 40) != tokens);

  SECTION("rebuilt after a preemption from its history") {
    Sampler rebuilt = make(kSeed, 0);
    for (int i = 0; i < 17; ++i) rebuilt.accept(tokens[i]);
    CHECK(sample_run(rebuilt, 17, 40) == std::vector<int32_t>(tokens.begin() + 17, tokens.end()));
  }
  SECTION("interleaved with others over one scratch") {
    Sampler mine = make(kSeed, 0), other = make(9, 0);
    SamplerScratch scratch;
    for (int32_t i = 0; i < 40; ++i) {
      auto noise_row = noise(500, 7000 + i);
      other.accept(other.sample(noise_row, i, scratch).token);
      auto row = noise(500, 100 + i);
      const int32_t token = mine.sample(row, i, scratch).token;
      mine.accept(token);
      REQUIRE(token == tokens[i]);
    }
  }
}

TEST_CASE("Sampler: penalties by hand", "[sample][unit]") {
  // Before: token 0 leads by 0.5. Prompt {0}, output {1, 1}.
  const std::vector<float> logits = {4.0f, 3.5f, 3.0f, -1.0f};
  SamplingParams params = greedy();
  const auto with_history = [&] {
    Sampler sampler(params, 4, {}, kSeed, 0, std::vector<int32_t>{0});
    sampler.accept(1);
    sampler.accept(1);
    return sample_one(sampler, logits, 2);
  };
  CHECK(with_history() == 0);
  SECTION("repetition takes prompt and output: 4/1.4 = 2.86, 3.5/1.4 = 2.5, 3.0") {
    params.repetition_penalty = 1.4f;
    CHECK(with_history() == 2);
  }
  SECTION("presence takes the output once: 3.5 + 0.4 < 4, 3.5 + 0.6 > 4") {
    params.presence_penalty = -0.4f;
    CHECK(with_history() == 0);
    params.presence_penalty = -0.6f;
    CHECK(with_history() == 1);
  }
  SECTION("frequency counts: 3.5 + 2 * 0.2 < 4, 3.5 + 2 * 0.3 > 4") {
    params.frequency_penalty = -0.2f;
    CHECK(with_history() == 0);
    params.frequency_penalty = -0.3f;
    CHECK(with_history() == 1);
  }
}

TEST_CASE("Penalties: values", "[sample][unit]") {
  SamplingParams params;
  params.repetition_penalty = 2.0f;
  params.presence_penalty = 0.25f;
  params.frequency_penalty = 0.5f;
  Penalties penalties(params, std::vector<int32_t>{0, 1, 0});
  for (const int32_t token : {1, 3, 3, 3}) penalties.accept(token);
  std::vector<float> logits = {4.0f, -4.0f, 4.0f, 4.0f};
  penalties.apply(logits);
  CHECK(logits == std::vector<float>{2.0f, -8.75f, 4.0f, 0.25f});
}

TEST_CASE("Sampler: min_tokens masks eos and stop ids until then", "[sample][unit]") {
  SamplingParams params = greedy();
  params.min_tokens = 3;
  params.stop_token_ids = {2};
  const std::vector<int32_t> eos = {0, 1, 999};
  const std::vector<float> logits = {9.0f, 8.0f, 7.0f, 6.0f};
  Sampler sampler(params, 4, eos, kSeed, 0, {});
  CHECK(sample_one(sampler, logits, 0) == 3);
  CHECK(sample_one(sampler, logits, 2) == 3);
  CHECK(sample_one(sampler, logits, 3) == 0);

  SECTION("also past a large bias") {
    params.logit_bias = {{0, 100.0f}};
    Sampler biased(params, 4, eos, kSeed, 0, {});
    CHECK(sample_one(biased, logits, 2) == 3);
    CHECK(sample_one(biased, logits, 3) == 0);
  }
  SECTION("and when drawing") {
    params.temperature = 1.0f;
    params.top_k = GENERATE(0, 2);
    Sampler drawing(params, 4, eos, kSeed, 0, {});
    CHECK(sample_one(drawing, logits, 1) == 3);
  }
}

TEST_CASE("Sampler: ignore_eos masks nothing", "[sample][unit]") {
  SamplingParams params = greedy();
  params.ignore_eos = true;
  Sampler sampler(params, 2, std::vector<int32_t>{1}, kSeed, 0, {});
  CHECK(sample_one(sampler, {0.0f, 1.0f}, 0) == 1);
}

TEST_CASE("Sampler: logit_bias adds", "[sample][unit]") {
  SamplingParams params = greedy();
  params.logit_bias = {{2, 1.5f}, {0, -100.0f}};
  CHECK(sample_one(params, {5.0f, 2.0f, 1.0f}) == 2);
  params.logit_bias = {{2, 0.5f}, {0, -100.0f}};
  CHECK(sample_one(params, {5.0f, 2.0f, 1.0f}) == 1);
}

TEST_CASE("Sampler: logprobs are of the raw logits", "[sample][unit]") {
  const auto logits = noise(1000, 21);
  double sum = 0.0;
  for (const float x : logits) sum += std::exp(double{x});
  const auto logprob = [&](int32_t id) { return logits[id] - std::log(sum); };
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });

  SamplingParams params;
  params.temperature = 0.3f;
  params.top_k = 5;
  params.logit_bias = {{7, 100.0f}};
  params.logprobs = 20;
  Sampler sampler(params, 1000, {}, kSeed, 0, {});
  SamplerScratch scratch;
  auto row = logits;
  const SampledToken sampled = sampler.sample(row, 0, scratch);
  CHECK(sampled.token == 7);
  CHECK(sampled.logprobs.chosen.token == 7);
  CHECK(sampled.logprobs.chosen.logprob == Approx(logprob(7)).margin(1e-5));
  REQUIRE(sampled.logprobs.top.size() == 20);
  for (int i = 0; i < 20; ++i) {
    CHECK(sampled.logprobs.top[i].token == order[i]);
    CHECK(sampled.logprobs.top[i].logprob == Approx(logprob(order[i])).margin(1e-5));
  }

  SECTION("k = 0 gives the chosen one alone") {
    params.logprobs = 0;
    Sampler chosen_only(params, 1000, {}, kSeed, 0, {});
    auto again = logits;
    const auto result = chosen_only.sample(again, 0, scratch).logprobs;
    CHECK(result.top.empty());
    CHECK(result.chosen.logprob == Approx(logprob(7)).margin(1e-5));
  }
}

TEST_CASE("logprobs_of: ties, few tokens, extremes", "[sample][unit]") {
  const auto tied = logprobs_of(std::vector<float>{1.0f, 2.0f, 2.0f, 2.0f}, 0, 2);
  REQUIRE(tied.top.size() == 2);
  CHECK(tied.top[0].token == 1);
  CHECK(tied.top[1].token == 2);
  const auto few = logprobs_of(std::vector<float>{0.0f, -kInf, 0.0f}, 1, 20);
  CHECK(few.top.size() == 2);
  CHECK(few.chosen.logprob == -kInf);
  CHECK(few.top[0].logprob == Approx(std::log(0.5)));
  const auto far = logprobs_of(std::vector<float>{1e30f, -1e30f}, 0, 1);
  CHECK(far.chosen.logprob == 0.0f);
  const auto poisoned = logprobs_of(std::vector<float>{kNan, kNan}, 0, 1);
  CHECK(poisoned.chosen.logprob == -kInf);
}

TEST_CASE("Sampler: NaN and infinities neither crash nor loop", "[sample][unit]") {
  const std::vector<std::vector<float>> rows = {
      {kNan, kNan, kNan, kNan},
      {-kInf, -kInf, -kInf, -kInf},
      {kInf, kInf, kInf, kInf},
      {kNan, 1.0f, -kInf, 2.0f},
      {kInf, 1.0f, kNan, -kInf},
      {3e38f, -3e38f, 3e38f, 0.0f},
      {0.0f, -1e30f, 1e30f, 1e30f},
  };
  std::vector<SamplingParams> variants(8);
  variants[0].temperature = 0.0f;
  variants[1].temperature = 1e-40f;
  variants[2].top_k = 2;
  variants[3].top_p = 0.5f;
  variants[4].min_p = 1.0f;
  variants[5].typical_p = 0.5f;
  variants[6].repetition_penalty = 1e-6f;
  variants[7].top_k = 3;
  variants[7].top_p = 1e-7f;
  variants[7].typical_p = 1e-7f;
  for (const auto& row : rows) {
    for (SamplingParams params : variants) {
      params.logprobs = 2;
      Sampler sampler(params, 4, {}, kSeed, 0, std::vector<int32_t>{0, 1});
      for (int32_t position = 0; position < 20; ++position) {
        const int32_t token = sample_one(sampler, row, position);
        REQUIRE(token >= 0);
        REQUIRE(token < 4);
        sampler.accept(token);
      }
    }
  }
  CHECK(sample_one(greedy(), {kNan, 1.0f, kNan, 2.0f}) == 3);
  CHECK(sample_one(greedy(), {-kInf, kNan, kInf, 2.0f}) == 2);
  SamplingParams params;
  for (int32_t position = 0; position < 50; ++position) {
    CHECK(sample_one(params, {-kInf, kNan, 1.0f, -kInf}, position) == 2);
  }
}

TEST_CASE("Sampler: a device's draw gives the same token, or says that it cannot",
          "[sample][unit]") {
  const float top_p = GENERATE(1.0f, 0.3f, 0.9f, 0.999f);
  const float min_p = GENERATE(0.0f, 0.02f, 0.3f);
  const int32_t top_k = GENERATE(0, 1, 40, 128, 200);
  const float temperature = GENERATE(0.0f, 0.3f, 1.0f, 1.4f);
  SamplingParams params;
  params.top_p = top_p;
  params.min_p = min_p;
  params.top_k = top_k;
  params.temperature = temperature;
  CAPTURE(top_p, min_p, top_k, temperature);
  SamplerScratch scratch;
  DrawScratch draw_scratch;
  int decided = 0, sharp_decided = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const int64_t vocab = seed % 8 == 7 ? 100 : 3000;
    std::vector<float> row = noise(vocab, seed);  // deviation 2
    const bool sharp = seed % 2 == 0;
    for (float& x : row) x *= sharp ? 4.0f : 0.5f;
    if (seed % 4 == 3)
      for (float& x : row) x = std::round(x);  // many equals
    if (seed % 5 == 4) row[5] = kNan, row[6] = kInf, row[7] = -kInf;
    const TopLogits top = top_logits(row);
    Sampler sampler(params, static_cast<int32_t>(vocab), {}, seed, 0, {});
    const int32_t got =
        draw_token(row.data(), top, sampler.token_draw(3), vocab, draw_scratch, OneThread());
    if (got == kUndecided) continue;
    ++decided;
    sharp_decided += sharp;
    REQUIRE(got == sampler.sample(row, 3, scratch).token);
  }
  // top_k beyond a vocabulary of 100 is none.
  const bool plain = top_p == 1.0f && min_p == 0.0f && top_k == 0;
  if (temperature == 0.0f || (top_k > 0 && top_k < 100) || plain) CHECK(decided == 40);
  if (top_k == kTopLogits) CHECK(decided >= 35);
  if (top_k == 0 && top_p < 0.99f && temperature <= 1.0f) CHECK(sharp_decided >= 18);
}

TEST_CASE("Sampler: the host draws where logits are changed or reported", "[sample][unit]") {
  const auto decides = [&](const SamplingParams& params, int32_t position = 0) {
    return !Sampler(params, 3000, std::vector{2}, kSeed, 0, {}).token_draw(position).by_host;
  };
  CHECK(decides(greedy()));
  SamplingParams params = greedy();
  params.logit_bias = {{5, 1.0f}};
  CHECK_FALSE(decides(params));
  params = greedy();
  params.presence_penalty = 0.5f;
  CHECK_FALSE(decides(params));
  params = greedy();
  params.logprobs = 0;
  CHECK_FALSE(decides(params));
  params = greedy();
  params.min_tokens = 2;
  CHECK_FALSE(decides(params, 1));
  CHECK(decides(params, 2));
  params = greedy();
  params.top_k = kTopLogits + 1;
  CHECK(decides(params));
  params.temperature = 1.0f;
  CHECK_FALSE(decides(params));
  params.top_k = 5;
  CHECK(decides(params));
  params.typical_p = 0.5f;
  CHECK_FALSE(decides(params));
}
