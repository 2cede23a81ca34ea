// Every truncation method against a naive double-precision implementation: the set of tokens that
// survive must be the same, and the draws must follow the renormalised probabilities.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>
#include <random>

#include "engine/sample/sampler.h"

using namespace headwater;

namespace {

using Distribution = std::vector<double>;

void normalize(Distribution& p) {
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
}

// Keeps the shortest prefix of `order` with the mass, zeroes the rest, renormalises.
void keep_prefix(Distribution& p, const std::vector<int>& order, double mass) {
  Distribution kept(p.size(), 0.0);
  double sum = 0.0;
  for (const int id : order) {
    kept[id] = p[id];
    sum += p[id];
    if (sum >= mass) break;
  }
  p = kept;
  normalize(p);
}

std::vector<int> order_by(const Distribution& p, auto key) {
  std::vector<int> order;
  for (int id = 0; id < std::ssize(p); ++id) {
    if (p[id] > 0.0) order.push_back(id);
  }
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key(a) < key(b); });
  return order;
}

Distribution expected(const std::vector<float>& logits, const SamplingParams& params) {
  Distribution p(logits.size());
  const double max = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < p.size(); ++i) p[i] = std::exp((logits[i] - max) / params.temperature);
  normalize(p);
  const auto by_probability = [&](int id) { return -p[id]; };
  if (params.top_k > 0 && params.top_k < std::ssize(p)) {
    const auto order = order_by(p, by_probability);
    for (int64_t i = params.top_k; i < std::ssize(order); ++i) p[order[i]] = 0.0;
    normalize(p);
  }
  if (params.typical_p < 1.0f) {
    double entropy = 0.0;
    for (const double x : p) entropy -= x > 0.0 ? x * std::log(x) : 0.0;
    const auto order = order_by(p, [&](int id) { return std::abs(-std::log(p[id]) - entropy); });
    keep_prefix(p, order, params.typical_p);
  }
  if (params.top_p < 1.0f) keep_prefix(p, order_by(p, by_probability), params.top_p);
  if (params.min_p > 0.0f) {
    const double floor = params.min_p * *std::max_element(p.begin(), p.end());
    for (double& x : p) x = x < floor ? 0.0 : x;
    normalize(p);
  }
  return p;
}

std::vector<int64_t> counts_of(const std::vector<float>& logits,
                               const SamplingParams& params,
                               int num_draws,
                               uint64_t seed) {
  Sampler sampler(params, static_cast<int32_t>(logits.size()), {}, seed, 0, {});
  SamplerScratch scratch;
  std::vector<int64_t> counts(logits.size());
  for (int i = 0; i < num_draws; ++i) {
    std::vector<float> row = logits;
    ++counts[sampler.sample(row, i, scratch).token];
  }
  return counts;
}

// The value that chi-squared exceeds once in a million (Wilson and Hilferty's approximation).
double critical_value(int degrees) {
  constexpr double kNormalQuantile = 4.7534;
  const double a = 2.0 / (9.0 * degrees);
  return degrees * std::pow(1.0 - a + kNormalQuantile * std::sqrt(a), 3);
}

void check_draws(const std::vector<float>& logits, const SamplingParams& params) {
  constexpr int kDraws = 40000;
  constexpr uint64_t kSeed = 20261124;
  const Distribution p = expected(logits, params);
  const auto counts = counts_of(logits, params, kDraws, kSeed);
  double chi_squared = 0.0, rare_expected = 0.0;
  int64_t rare_count = 0;
  int cells = 0;
  const auto add_cell = [&](double count, double mean) {
    chi_squared += (count - mean) * (count - mean) / mean;
    ++cells;
  };
  for (size_t id = 0; id < p.size(); ++id) {
    INFO("token " << id << " p " << p[id]);
    if (p[id] == 0.0) REQUIRE(counts[id] == 0);
    if (p[id] * kDraws >= 8) {
      add_cell(static_cast<double>(counts[id]), p[id] * kDraws);
    } else {
      rare_expected += p[id] * kDraws;
      rare_count += counts[id];
    }
  }
  if (rare_expected >= 8) add_cell(static_cast<double>(rare_count), rare_expected);
  INFO("seed " << kSeed << " chi-squared " << chi_squared << " of " << cells << " cells");
  REQUIRE(cells >= 2);
  CHECK(chi_squared < critical_value(cells - 1));
}

std::vector<float> small_logits() {
  return {2.0f, 1.5f, 1.5f, 0.3f, -0.7f, 3.1f, 0.0f, -2.0f, 2.4f, 1.1f, -4.0f, 0.9f};
}

// Like a language model's row: few likely tokens, a long tail.
std::vector<float> long_logits() {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  std::vector<float> logits(3000);
  for (float& x : logits) x = normal(rng);
  return logits;
}

}  // namespace

TEST_CASE("Sampler: draws follow each truncation", "[sample][unit]") {
  SamplingParams params;
  SECTION("softmax") {}
  SECTION("temperature below 1") { params.temperature = 0.6f; }
  SECTION("temperature above 1") { params.temperature = 1.7f; }
  SECTION("top_k with a tie on the border") { params.top_k = 4; }
  SECTION("top_k beyond the vocabulary") { params.top_k = 1000000; }
  SECTION("top_p") { params.top_p = 0.8f; }
  SECTION("min_p") { params.min_p = 0.15f; }
  SECTION("typical_p") { params.typical_p = 0.5f; }
  SECTION("all together") {
    params.temperature = 1.3f;
    params.top_k = 9;
    params.typical_p = 0.9f;
    params.top_p = 0.85f;
    params.min_p = 0.1f;
  }
  check_draws(small_logits(), params);
  check_draws(long_logits(), params);
}

TEST_CASE("Sampler: a wrong distribution fails the test that others pass", "[sample][unit]") {
  SamplingParams drawn;
  SamplingParams claimed;
  claimed.temperature = 1.05f;
  const auto logits = small_logits();
  const auto counts = counts_of(logits, drawn, 40000, 1);
  const Distribution p = expected(logits, claimed);
  double chi_squared = 0.0;
  for (size_t i = 0; i < p.size(); ++i) {
    chi_squared += std::pow(counts[i] - 40000 * p[i], 2) / (40000 * p[i]);
  }
  CHECK(chi_squared > critical_value(static_cast<int>(p.size()) - 1));
}

TEST_CASE("Sampler: the surviving set equals the naive one at a real vocabulary's size",
          "[sample][unit]") {
  std::mt19937 rng(11);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(49152);
  for (float& x : logits) x = normal(rng);
  SamplingParams params;
  SECTION("top_p") { params.top_p = 0.3f; }
  SECTION("min_p") { params.min_p = 0.05f; }
  SECTION("top_k and top_p") {
    params.top_k = 50;
    params.top_p = 0.9f;
  }
  const Distribution p = expected(logits, params);
  const auto survivors = std::count_if(p.begin(), p.end(), [](double x) { return x > 0.0; });
  CHECK(survivors < 12000);
  const auto counts = counts_of(logits, params, 2000, 5);
  for (size_t id = 0; id < p.size(); ++id) {
    if (p[id] == 0.0) CHECK(counts[id] == 0);
  }
}
