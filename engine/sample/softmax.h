// The passes over a whole row of logits. Written so that the compiler vectorises them; the order
// of every sum is fixed, so a row gives the same bits on every run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace headwater {

struct Candidate {
  int32_t id = 0;
  float logit = 0.0f;
  float weight = 0.0f;  // softmax numerator
  float order = 0.0f;   // sort key of the method in use
};

// Sums of weights over consecutive runs of this many tokens.
inline constexpr int64_t kBlockTokens = 256;

// NaN becomes the smallest finite float, +inf the largest; -inf (masked) stays.
void make_comparable(std::span<float> logits);

// -inf if empty; NaN is skipped.
float max_of(std::span<const float> logits);

// Lowest index of the largest value; 0 if everything is NaN or -inf.
int32_t argmax(std::span<const float> logits);

// logits[i] <- exp((logits[i] - max) / temperature), max finite; relative error below 2e-7, values
// under exp(-87) are 0. block_sums gets one sum per kBlockTokens. Returns the sum of all.
double exp_in_place(std::span<float> logits,
                    float max,
                    float temperature,
                    std::vector<double>& block_sums);

// log(sum(exp(logits))); NaN counts as -inf, +inf as the largest float. -inf if nothing is finite.
double log_sum_exp(std::span<const float> logits);

// The k largest in no particular order, lowest id first among equals; masked (-inf) and NaN are
// left out, so fewer than k may come. Only id and logit are set. out is overwritten.
void select_top(std::span<const float> logits, int32_t k, std::vector<Candidate>& out);

}  // namespace headwater
