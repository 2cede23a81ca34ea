// How the next token is drawn from a row of logits: one body for every device, so that all draw the
// same token. The steps and their order are Sampler's (engine/sample/sampler.h), without those that
// change logits.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "kernels/base/host_device.h"
#include "kernels/sample/exp.h"
#include "kernels/sample/philox.h"
#include "kernels/sample/top_logits.h"

namespace headwater {

inline constexpr int32_t kUndecided = -1;  // in place of a token: the host draws

struct TokenDraw {
  bool by_host = true;
  float temperature = 0;  // 0 = greedy
  float top_p = 1;
  float min_p = 0;
  int32_t top_k = 0;  // 0 = off
  uint32_t choice = 0;
  uint32_t position = 0;  // output tokens before this one
  uint64_t seed = 0;

  HW_HOST_DEVICE bool truncates() const { return top_k > 0 || top_p < 1.0f || min_p > 0.0f; }
  HW_HOST_DEVICE double uniform() const { return philox_uniform(seed, choice, position); }
};

// Who runs a draw: one thread, or a block of threads that run it together. each(n, f) calls f(i)
// for every i in [0, n), shared out, and returns when all are done.
struct OneThread {
  template <typename F>
  void each(int32_t n, F f) const {
    for (int32_t i = 0; i < n; ++i) f(i);
  }
};

// Room that the threads of a draw share.
struct DrawScratch {
  static constexpr int32_t kBlockTokens = 256;  // of a row, whose weights are summed by themselves
  static constexpr int32_t kLanes = 16;         // sums within a block
  static constexpr int32_t kBlocksAtOnce = 64;
  static constexpr int32_t kMaxBlocks = 2048;

  float weights[kBlockTokens];  // likeliest first
  float kept[kTopLogits];       // candidates, in the order in which they are drawn from
  int32_t ids[kTopLogits];      // of kept
  float lanes[kBlocksAtOnce * kLanes];
  float block_sums[kMaxBlocks];
};

// A bound on the weights outside top, `inside` being those inside. Each is at most the last one
// inside; and where temperature sharpens, that much smaller than at temperature 1, where
// log_sum_exp tells their sum.
HW_HOST_DEVICE inline double most_outside(const TopLogits& top,
                                          const TokenDraw& draw,
                                          int64_t vocab_size) {
  const double max = top.logits[0];
  const double fall = top.logits[top.count - 1] - max;  // <= 0
  const auto num_outside = static_cast<double>(vocab_size - top.count);
  const double by_count = num_outside * std::exp(fall / draw.temperature);
  if (draw.temperature > 1.0f) return by_count;
  double inside = 0;  // at temperature 1
  for (int32_t i = 0; i < top.count; ++i) inside += exp_nonpositive(top.logits[i] - top.logits[0]);
  const double error = 2e-5 * std::fmax(1.0, std::fabs(double{top.log_sum_exp}));
  const double outside = std::exp(top.log_sum_exp + error - max) - inside * (1 - 1e-6);
  const double sharpened = std::exp(fall * (1.0 / draw.temperature - 1.0));
  return std::fmin(by_count, std::fmax(0.0, outside) * sharpened);
}

// What the whole row would give, or kUndecided where the likeliest tokens cannot tell. Draws that
// truncate nothing: draw_from_row().
template <typename Team>
HW_HOST_DEVICE int32_t draw_from_top(
    const TopLogits& top, const TokenDraw& draw, int64_t vocab_size, DrawScratch& s, Team team) {
  if (draw.by_host || top.count < 0) return kUndecided;
  if (top.count == 0) return 0;
  if (draw.temperature == 0.0f) return top.ids[0];
  const bool is_whole = top.count < kTopLogits;  // no other token has a chance
  if (draw.top_k > top.count && !is_whole) return kUndecided;
  const int32_t n = draw.top_k > 0 && draw.top_k < top.count ? draw.top_k : top.count;
  const float max = top.logits[0];
  team.each(n, [&](int32_t i) {
    s.weights[i] = exp_nonpositive((top.logits[i] - max) / draw.temperature);
  });

  constexpr double kRounding = 1e-5;
  constexpr float kNearly = 1 + 1e-6f;  // by which weights may disagree with the order of logits
  int32_t num_kept = n;
  if (draw.top_p < 1.0f) {
    team.each(n, [&](int32_t i) {  // by weight; ids decide among equals
      int32_t rank = 0;
      for (int32_t j = 0; j < n; ++j)
        rank += s.weights[j] > s.weights[i] ||
                (s.weights[j] == s.weights[i] && top.ids[j] < top.ids[i]);
      s.kept[rank] = s.weights[i];
      s.ids[rank] = top.ids[i];
    });
    double inside = 0;
    for (int32_t i = 0; i < n; ++i) inside += s.weights[i];
    // The row's own sum lies between these, so the nucleus ends where it does for both.
    double least = inside, most = inside;
    if (draw.top_k == 0) {
      least *= 1 - kRounding;
      most = (inside + (is_whole ? 0.0 : most_outside(top, draw, vocab_size))) * (1 + kRounding);
    }
    double mass = 0;
    num_kept = 0;
    while (num_kept < n && mass < draw.top_p * most) mass += s.kept[num_kept++];
    if (draw.top_k == 0) {
      const float smallest = s.kept[num_kept - 1];
      if (mass < draw.top_p * most || mass - smallest >= draw.top_p * least) return kUndecided;
      const bool may_have_equals_outside = smallest <= s.weights[n - 1] * kNearly;
      if (!is_whole && may_have_equals_outside) return kUndecided;
    }
    while (num_kept > 1 && s.kept[num_kept - 1] < draw.min_p) --num_kept;
  } else {  // by logit after top_k, else by id
    const bool by_id = draw.top_k == 0;
    const bool may_miss = by_id && !is_whole;
    if (may_miss && s.weights[n - 1] * kNearly >= draw.min_p) return kUndecided;
    num_kept = 0;
    for (int32_t i = 0; i < n; ++i) num_kept += s.weights[i] >= draw.min_p;
    team.each(n, [&](int32_t i) {
      if (s.weights[i] < draw.min_p) return;
      int32_t rank = 0;
      for (int32_t j = 0; j < n; ++j)
        rank += s.weights[j] >= draw.min_p && (by_id ? top.ids[j] < top.ids[i] : j < i);
      s.kept[rank] = s.weights[i];
      s.ids[rank] = top.ids[i];
    });
  }
  double mass = 0;
  for (int32_t i = 0; i < num_kept; ++i) mass += s.kept[i];
  double target = draw.uniform() * mass;
  for (int32_t i = 0; i < num_kept; ++i) {
    target -= s.kept[i];
    if (target < 0.0) return s.ids[i];
  }
  return s.ids[num_kept - 1];
}

// A draw that truncates nothing. row: [vocab_size]; max: its largest logit, as TopLogits has it.
// The sums are in the order of exp_in_place (engine/sample/softmax.h).
template <typename Team>
HW_HOST_DEVICE int32_t draw_from_row(const float* row,
                                     int64_t vocab_size,
                                     float max,
                                     const TokenDraw& draw,
                                     DrawScratch& s,
                                     Team team) {
  constexpr int32_t kBlock = DrawScratch::kBlockTokens, kLanes = DrawScratch::kLanes;
  if (vocab_size > int64_t{DrawScratch::kMaxBlocks} * kBlock) return kUndecided;
  const auto weight = [&](int64_t id) {
    const float x = row[id];
    const float comparable = x != x ? -FLT_MAX : (x > FLT_MAX ? FLT_MAX : x);
    return exp_nonpositive((comparable - max) / draw.temperature);
  };
  const auto size = static_cast<int32_t>(vocab_size);
  const int32_t num_blocks = (size + kBlock - 1) / kBlock;
  const auto block_end = [&](int32_t block) { return std::min(size, (block + 1) * kBlock); };
  for (int32_t first = 0; first < num_blocks; first += DrawScratch::kBlocksAtOnce) {
    const int32_t count = std::min(num_blocks - first, +DrawScratch::kBlocksAtOnce);
    team.each(count * kLanes, [&](int32_t i) {
      const int32_t begin = (first + i / kLanes) * kBlock, end = block_end(first + i / kLanes);
      const int32_t whole_lanes = (end - begin) / kLanes * kLanes;
      float sum = 0;
      for (int32_t id = i % kLanes; id < whole_lanes; id += kLanes) sum += weight(begin + id);
      s.lanes[i] = sum;
    });
    team.each(count, [&](int32_t i) {
      const int32_t begin = (first + i) * kBlock, end = block_end(first + i);
      float sum = 0;
      for (int32_t lane = 0; lane < kLanes; ++lane) sum += s.lanes[i * kLanes + lane];
      for (int32_t id = begin + (end - begin) / kLanes * kLanes; id < end; ++id) sum += weight(id);
      s.block_sums[first + i] = sum;
    });
  }
  double total = 0;
  for (int32_t block = 0; block < num_blocks; ++block) total += s.block_sums[block];
  double target = draw.uniform() * total;
  int32_t block = 0;
  while (block + 1 < num_blocks && target >= s.block_sums[block]) target -= s.block_sums[block++];
  const int32_t begin = block * kBlock, n = block_end(block) - begin;
  team.each(n, [&](int32_t i) { s.weights[i] = weight(begin + i); });
  int32_t last = 0;  // with weight: rounding may carry the target past the end
  for (int32_t i = 0; i < n; ++i) {
    if (!(s.weights[i] > 0.0f)) continue;
    last = i;
    target -= s.weights[i];
    if (target < 0.0) break;
  }
  return begin + last;
}

template <typename Team>
HW_HOST_DEVICE int32_t draw_token(const float* row,
                                  const TopLogits& top,
                                  const TokenDraw& draw,
                                  int64_t vocab_size,
                                  DrawScratch& s,
                                  Team team) {
  if (!draw.by_host && top.count > 0 && draw.temperature > 0.0f && !draw.truncates())
    return draw_from_row(row, vocab_size, top.logits[0], draw, s, team);
  return draw_from_top(top, draw, vocab_size, s, team);
}

}  // namespace headwater
