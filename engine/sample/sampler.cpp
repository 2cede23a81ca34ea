#include "engine/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/sample/exp.h"
#include "kernels/sample/philox.h"

namespace headwater {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

std::vector<int32_t> ids_in_range(std::span<const int32_t> ids, int32_t vocab_size) {
  std::vector<int32_t> kept;
  kept.reserve(ids.size());
  std::copy_if(ids.begin(), ids.end(), std::back_inserter(kept), [=](int32_t id) {
    return id >= 0 && id < vocab_size;
  });
  return kept;
}

bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

double mass_of(const std::vector<Candidate>& candidates) {
  double mass = 0.0;
  for (const Candidate& candidate : candidates) mass += candidate.weight;
  return mass;
}

// Cuts to the shortest prefix, by ascending (order, id), whose weight reaches `mass`. Sorts only
// as far as it has to: the prefix is usually a few of many thousand.
void keep_mass(std::vector<Candidate>& candidates, double mass) {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.order != b.order ? a.order < b.order : a.id < b.id;
  };
  const auto begin = candidates.begin();
  double sum = 0.0;
  int64_t sorted = 0, chunk = 32;
  while (sorted < std::ssize(candidates)) {
    const int64_t end = std::min(sorted + chunk, std::ssize(candidates));
    if (end < std::ssize(candidates)) {
      std::nth_element(begin + sorted, begin + end, candidates.end(), before);
    }
    std::sort(begin + sorted, begin + end, before);
    for (; sorted < end; ++sorted) {
      sum += candidates[sorted].weight;
      if (sum >= mass) {
        candidates.resize(sorted + 1);
        return;
      }
    }
    chunk *= 4;
  }
}

void keep_typical(std::vector<Candidate>& candidates, double total, float typical_p) {
  const double log_total = std::log(total);
  double entropy = 0.0;
  for (const Candidate& c : candidates) {
    entropy += c.weight / total * (log_total - std::log(double{c.weight}));
  }
  for (Candidate& c : candidates) {
    const double surprise = log_total - std::log(double{c.weight});
    c.order = static_cast<float>(std::abs(surprise - entropy));
  }
  keep_mass(candidates, typical_p * total);
}

void keep_top_p(std::vector<Candidate>& candidates, double total, float top_p) {
  for (Candidate& c : candidates) c.order = -c.weight;
  keep_mass(candidates, top_p * total);
}

void keep_min_p(std::vector<Candidate>& candidates, float min_p) {
  float largest = 0.0f;
  for (const Candidate& c : candidates) largest = std::max(largest, c.weight);
  std::erase_if(candidates, [=](const Candidate& c) { return c.weight < min_p * largest; });
}

int32_t pick(std::span<const float> weights, std::span<const double> block_sums, double target) {
  int64_t block = 0;
  while (block + 1 < std::ssize(block_sums) && target >= block_sums[block]) {
    target -= block_sums[block++];
  }
  const int64_t begin = block * kBlockTokens;
  const int64_t end = std::min(begin + kBlockTokens, std::ssize(weights));
  int64_t last = begin;  // with weight: rounding may carry the target past the end
  for (int64_t i = begin; i < end; ++i) {
    if (!(weights[i] > 0.0f)) continue;
    last = i;
    target -= weights[i];
    if (target < 0.0) break;
  }
  return static_cast<int32_t>(last);
}

int32_t pick(std::span<const Candidate> candidates, double target) {
  for (const Candidate& c : candidates) {
    target -= c.weight;
    if (target < 0.0) return c.id;
  }
  return candidates.back().id;
}

}  // namespace

TokenLogprobs logprobs_of(std::span<const float> logits, int32_t chosen, int32_t k) {
  const double normalizer = log_sum_exp(logits);
  const auto logprob = [&](float logit) {
    const double value = std::min(logit, std::numeric_limits<float>::max()) - normalizer;
    return std::isnan(value) ? kMasked : static_cast<float>(value);
  };
  TokenLogprobs result{.chosen = {chosen, logprob(logits[chosen])}, .top = {}};
  if (k <= 0) return result;
  std::vector<Candidate> top;
  select_top(logits, k, top);
  std::ranges::sort(top, more_likely);
  result.top.reserve(top.size());
  for (const Candidate& c : top) result.top.push_back({c.id, logprob(c.logit)});
  return result;
}

Sampler::Sampler(const SamplingParams& params,
                 int32_t vocab_size,
                 std::span<const int32_t> eos_ids,
                 uint64_t seed,
                 int32_t choice,
                 std::span<const int32_t> prompt)
    : temperature_(params.temperature),
      top_k_(params.top_k > 0 && params.top_k < vocab_size ? params.top_k : 0),
      top_p_(params.top_p),
      min_p_(params.min_p),
      typical_p_(params.typical_p),
      logprobs_(params.logprobs),
      min_tokens_(params.min_tokens),
      vocab_size_(vocab_size),
      choice_(static_cast<uint32_t>(choice)),
      seed_(seed),
      logit_bias_(params.logit_bias),
      penalties_(params, ids_in_range(prompt, vocab_size)) {
  if (min_tokens_ <= 0) return;
  ending_ids_ = ids_in_range(eos_ids, vocab_size);
  ending_ids_.insert(ending_ids_.end(), params.stop_token_ids.begin(), params.stop_token_ids.end());
}

SampledToken Sampler::sample(std::span<float> logits,
                             int32_t output_position,
                             SamplerScratch& scratch) {
  HW_CHECK(std::ssize(logits) == vocab_size_, "logits and vocabulary", logits.size(), vocab_size_);
  if (logprobs_ >= 0) scratch.raw_logits.assign(logits.begin(), logits.end());
  adjust(logits, output_position);
  SampledToken sampled;
  sampled.token = temperature_ == 0.0f ? argmax(logits) : draw(logits, output_position, scratch);
  if (logprobs_ >= 0) {
    sampled.logprobs = logprobs_of(scratch.raw_logits, sampled.token, logprobs_);
  }
  return sampled;
}

TokenDraw Sampler::token_draw(int32_t output_position) const {
  const bool adjusts = !logit_bias_.empty() || output_position < min_tokens_ || penalties_.active();
  const bool needs_row = temperature_ > 0.0f && (typical_p_ < 1.0f || top_k_ > kTopLogits);
  return {.by_host = adjusts || needs_row || logprobs_ >= 0,
          .temperature = temperature_,
          .top_p = top_p_,
          .min_p = min_p_,
          .top_k = top_k_,
          .choice = choice_,
          .position = static_cast<uint32_t>(output_position),
          .seed = seed_};
}

void Sampler::accept(int32_t token) { penalties_.accept(token); }

void Sampler::adjust(std::span<float> logits, int32_t output_position) const {
  for (const auto& [id, bias] : logit_bias_) logits[id] += bias;
  if (output_position < min_tokens_) {
    for (const int32_t id : ending_ids_) logits[id] = kMasked;
  }
  penalties_.apply(logits);
  make_comparable(logits);
}

int32_t Sampler::draw(std::span<float> logits,
                      int32_t output_position,
                      SamplerScratch& scratch) const {
  const float max = max_of(logits);
  if (max == kMasked) return 0;
  const double uniform = philox_uniform(seed_, choice_, static_cast<uint32_t>(output_position));
  if (top_k_ > 0 || typical_p_ < 1.0f || top_p_ < 1.0f || min_p_ > 0.0f) {
    truncate(logits, max, scratch);
    return pick(scratch.candidates, uniform * mass_of(scratch.candidates));
  }
  const double total = exp_in_place(logits, max, temperature_, scratch.block_sums);
  return pick(logits, scratch.block_sums, uniform * total);
}

void Sampler::truncate(std::span<float> logits, float max, SamplerScratch& scratch) const {
  std::vector<Candidate>& candidates = scratch.candidates;
  double total = 0.0;
  if (top_k_ > 0) {
    select_top(logits, top_k_, candidates);
    std::ranges::sort(candidates, more_likely);
    for (Candidate& c : candidates) {
      c.weight = exp_nonpositive((c.logit - max) / temperature_);
    }
    total = mass_of(candidates);
  } else {
    total = exp_in_place(logits, max, temperature_, scratch.block_sums);
    // Tokens under (1 - top_p) * total / vocab_size sum to less than (1 - top_p) * total, so the
    // nucleus needs none of them; the likeliest weighs 1, so min_p is a weight. Typical sampling
    // may keep any token.
    float floor = 0.0f;
    if (typical_p_ >= 1.0f) {
      const double outside_nucleus = (1.0 - top_p_) * total / vocab_size_;
      floor = std::max(min_p_, static_cast<float>(outside_nucleus));
    }
    candidates.clear();
    for (int32_t id = 0; id < vocab_size_; ++id) {
      const float weight = logits[id];
      if (weight >= floor && weight > 0.0f) candidates.push_back({.id = id, .weight = weight});
    }
  }
  if (typical_p_ < 1.0f) {
    std::erase_if(candidates, [](const Candidate& c) { return !(c.weight > 0.0f); });
    keep_typical(candidates, total, typical_p_);
    total = mass_of(candidates);
  }
  if (top_p_ < 1.0f) keep_top_p(candidates, total, top_p_);
  if (min_p_ > 0.0f) keep_min_p(candidates, min_p_);
}

}  // namespace headwater
