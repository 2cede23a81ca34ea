#include "engine/sample/softmax.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/sample/exp.h"

namespace headwater {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kMasked = -std::numeric_limits<float>::infinity();
constexpr int64_t kLanes = 16;

// Writes the weights of one block and returns their sum.
float exp_block(const float* x, int64_t n, float max, float temperature, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float capped = x[i] < kLargest ? x[i] : (x[i] >= kLargest ? kLargest : kMasked);
    out[i] = exp_nonpositive((capped - max) / temperature);
  }
  std::array<float, kLanes> lanes{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += out[i + lane];
  }
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  for (; i < n; ++i) sum += out[i];
  return sum;
}

bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

}  // namespace

void make_comparable(std::span<float> logits) {
  for (float& x : logits) {
    const float capped = x > kLargest ? kLargest : x;
    x = capped != capped ? -kLargest : capped;
  }
}

float max_of(std::span<const float> logits) {
  std::array<float, kLanes> lanes;
  lanes.fill(kMasked);
  const int64_t n = std::ssize(logits);
  const float* x = logits.data();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    }
  }
  float max = kMasked;
  for (const float lane : lanes) max = lane > max ? lane : max;
  for (; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

int32_t argmax(std::span<const float> logits) {
  const float max = max_of(logits);
  if (max == kMasked) return 0;
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), max) - logits.begin());
}

double exp_in_place(std::span<float> logits,
                    float max,
                    float temperature,
                    std::vector<double>& block_sums) {
  block_sums.clear();
  double total = 0.0;
  for (int64_t begin = 0; begin < std::ssize(logits); begin += kBlockTokens) {
    float* block = logits.data() + begin;
    const int64_t n = std::min(kBlockTokens, std::ssize(logits) - begin);
    block_sums.push_back(exp_block(block, n, max, temperature, block));
    total += block_sums.back();
  }
  return total;
}

double log_sum_exp(std::span<const float> logits) {
  const float max = std::min(max_of(logits), kLargest);
  if (max == kMasked) return kMasked;
  std::array<float, kBlockTokens> weights;
  double total = 0.0;
  for (int64_t begin = 0; begin < std::ssize(logits); begin += kBlockTokens) {
    const int64_t n = std::min(kBlockTokens, std::ssize(logits) - begin);
    total += exp_block(logits.data() + begin, n, max, 1.0f, weights.data());
  }
  return max + std::log(total);
}

void select_top(std::span<const float> logits, int32_t k, std::vector<Candidate>& out) {
  out.clear();
  if (k <= 0) return;
  // Collects everything above a rising threshold and cuts back to k when the buffer is full:
  // linear time, and equal values met later have higher ids, so a strict comparison is right.
  const size_t keep = static_cast<size_t>(k);
  const size_t capacity = 2 * keep + 128;
  float threshold = kMasked;
  const auto cut = [&] {
    if (out.size() <= keep) return;
    std::nth_element(out.begin(), out.begin() + k - 1, out.end(), more_likely);
    threshold = out[keep - 1].logit;
    out.resize(keep);
  };
  for (int32_t id = 0; id < std::ssize(logits); ++id) {
    const float logit = logits[id];
    if (!(logit > threshold)) continue;
    out.push_back({.id = id, .logit = logit});
    if (out.size() == capacity) cut();
  }
  cut();
}

}  // namespace headwater
