// The exponential of sampling: the same bits on every device, as long as the compiler fuses no
// multiplication with an addition (-std=c++20; nvcc: -fmad=false).
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/base/host_device.h"

namespace headwater {

// exp(x) for x <= 0; NaN gives 0. Cody-Waite reduction by ln 2, then a polynomial of degree 6
// (Taylor coefficients suffice on |r| <= ln2/2). Branch-free, hence vectorisable.
HW_HOST_DEVICE inline float exp_nonpositive(float x) {
  constexpr float kSmallest = -87.0f;
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRoundingMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x > kSmallest ? x : kSmallest;
  const float shifted = clamped * kLog2E + kRoundingMagic;
  const float n = shifted - kRoundingMagic;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) << 23;  // the magic's bits shift out
  const float scaled = std::bit_cast<float>(std::bit_cast<int32_t>(p) + exponent);
  return x > kSmallest ? scaled : 0.0f;
}

}  // namespace headwater
