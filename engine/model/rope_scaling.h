// The published rules that stretch a rotary embedding beyond its trained context, folded into a
// RopeSpec at load.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kernels/rope/rope.h"

namespace headwater {

enum class RopeRule : uint8_t { kNone, kLinear, kLlama3, kYarn };

struct RopeScaling {
  RopeRule rule = RopeRule::kNone;
  double factor = 1.0;
  double original_positions = 0.0;  // llama3, yarn: trained context before stretching
  double low_freq_factor = 1.0;     // llama3
  double high_freq_factor = 4.0;    // llama3
  double beta_fast = 32.0;          // yarn: rotations over the trained context above which a pair
  double beta_slow = 1.0;           // keeps its frequency, and below which it is divided by factor
  double extrapolation = 1.0;       // yarn: 0 = divide every pair
  bool whole_pairs = true;          // yarn: the two borders are rounded outwards to whole pairs
  double magnitude = 1.0;           // of cos and sin, all factors of the rule included
};

// The magnitude yarn recommends: 1 + 0.1 * weight * ln(factor).
double yarn_magnitude(double factor, double weight = 1.0);

// divisors: [rotary_dim / 2] of the unscaled frequencies, or empty.
RopeSpec make_rope(RopePairing pairing,
                   int32_t rotary_dim,
                   double base,
                   const RopeScaling& scaling,
                   std::span<const float> divisors = {});

}  // namespace headwater
