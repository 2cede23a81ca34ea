// The likeliest tokens of a row of logits, and its normaliser: all that most draws need, in a
// kilobyte instead of the whole row. Pure values; any thread.
#pragma once

#include <cstdint>
#include <span>

namespace headwater {

inline constexpr int32_t kTopLogits = 128;

// As step 0 of sampling sees the row: NaN is the smallest finite float, +inf the largest, and -inf
// is no token. Likeliest first, lowest id among equals.
struct TopLogits {
  // Entries set: kTopLogits, or fewer if no others are finite. -1: the device could not tell (very
  // many equal values); the row decides.
  int32_t count = 0;
  float log_sum_exp = 0;  // of the row, within 1e-5 times the larger of 1 and its magnitude
  int32_t ids[kTopLogits] = {};
  float logits[kTopLogits] = {};
};

TopLogits top_logits(std::span<const float> row);

}  // namespace headwater
