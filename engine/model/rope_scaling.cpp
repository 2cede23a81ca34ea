#include "engine/model/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numbers>

#include "kernels/base/check.h"

namespace headwater {
namespace {

// Wavelengths short against the trained context are kept, long ones divided, those between mixed.
double llama3_frequency(double frequency, const RopeScaling& scaling) {
  const double rotations = scaling.original_positions * frequency / (2 * std::numbers::pi);
  if (rotations > scaling.high_freq_factor) return frequency;
  if (rotations < scaling.low_freq_factor) return frequency / scaling.factor;
  const double keep =
      (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - keep) * frequency / scaling.factor + keep * frequency;
}

// The pair that turns `rotations` times over the trained context.
double yarn_pair(double rotations, int32_t rotary_dim, double base, const RopeScaling& scaling) {
  return rotary_dim * std::log(scaling.original_positions / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(base));
}

struct YarnRamp {
  double low = 0;   // pairs up to here are kept
  double high = 0;  // pairs from here are divided

  YarnRamp(int32_t rotary_dim, double base, const RopeScaling& scaling) {
    low = yarn_pair(scaling.beta_fast, rotary_dim, base, scaling);
    high = yarn_pair(scaling.beta_slow, rotary_dim, base, scaling);
    if (scaling.whole_pairs) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(0.0, low);
    high = std::min(rotary_dim - 1.0, high);
  }
  double keep(int32_t pair) const {
    return 1 - std::clamp((pair - low) / std::max(0.001, high - low), 0.0, 1.0);
  }
};

}  // namespace

double yarn_magnitude(double factor, double weight) {
  return factor <= 1 ? 1.0 : 1 + 0.1 * weight * std::log(factor);
}

RopeSpec make_rope(RopePairing pairing,
                   int32_t rotary_dim,
                   double base,
                   const RopeScaling& scaling,
                   std::span<const float> divisors) {
  const int32_t num_pairs = rotary_dim / 2;
  HW_CHECK(rotary_dim > 0 && rotary_dim % 2 == 0, "rotary_dim", rotary_dim);
  HW_CHECK(divisors.empty() || std::ssize(divisors) == num_pairs, "divisors", divisors.size());
  RopeSpec rope;
  rope.pairing = pairing;
  rope.rotary_dim = rotary_dim;
  rope.magnitude = static_cast<float>(scaling.magnitude);
  rope.inv_freq.resize(static_cast<size_t>(num_pairs));
  const YarnRamp ramp(rotary_dim, base, scaling);
  for (int32_t i = 0; i < num_pairs; ++i) {
    double frequency = std::pow(base, -2.0 * i / rotary_dim);
    if (!divisors.empty()) frequency /= divisors[static_cast<size_t>(i)];
    switch (scaling.rule) {
      case RopeRule::kNone:
        break;
      case RopeRule::kLinear:
        frequency /= scaling.factor;
        break;
      case RopeRule::kLlama3:
        frequency = llama3_frequency(frequency, scaling);
        break;
      case RopeRule::kYarn: {
        const double keep = scaling.extrapolation * ramp.keep(i);
        frequency = (1 - keep) * frequency / scaling.factor + keep * frequency;
        break;
      }
    }
    rope.inv_freq[static_cast<size_t>(i)] = frequency;
  }
  return rope;
}

}  // namespace headwater
