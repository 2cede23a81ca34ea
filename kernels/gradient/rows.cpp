#include "kernels/gradient/rows.h"

#include <algorithm>

#include "kernels/base/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gradient/rows.cpp"
#include <hwy/foreach_target.h>

#include "kernels/base/lanes16-inl.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

// Sixteen elements at p of which `count` exist, padded.
HWY_INLINE F32x16 load_some(const float* p, int64_t count, float padding) {
  if (count >= 16) return load(p);
  float lanes[16];
  std::fill_n(lanes, 16, padding);
  std::copy_n(p, count, lanes);
  return load(lanes);
}
HWY_INLINE void store_some(const F32x16& value, int64_t count, float* p) {
  if (count >= 16) return store(value, p);
  float lanes[16];
  store(value, lanes);
  std::copy_n(lanes, count, p);
}

inline float max_row(const float* x, int64_t n) {
  constexpr float kLowest = -3.4e38f;
  F32x16 largest = splat(kLowest);
  for (int64_t i = 0; i < n; i += 16) largest = max(largest, load_some(x + i, n - i, kLowest));
  return max_lanes(largest);
}

inline float exp_row(const float* x, float shift, float scale, int64_t n, float* out) {
  F32x16 sum = splat(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 value = exp((load_some(x + i, n - i, -3.4e38f) - splat(shift)) * splat(scale));
    store_some(value, n - i, out + i);
    sum = sum + value;
  }
  return sum_lanes(sum);
}

inline float dot_row(const float* a, const float* b, int64_t n) {
  F32x16 sum = splat(0.0f);
  for (int64_t i = 0; i < n; i += 16)
    sum = fma(load_some(a + i, n - i, 0.0f), load_some(b + i, n - i, 0.0f), sum);
  return sum_lanes(sum);
}

inline void add_scaled_row(float a, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 16)
    store_some(
        fma(splat(a), load_some(x + i, n - i, 0.0f), load_some(y + i, n - i, 0.0f)), n - i, y + i);
}

inline void scale_row(float a, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += 16)
    store_some(load_some(x + i, n - i, 0.0f) * splat(a), n - i, x + i);
}

inline void softmax_gradient_row(
    float a, const float* p, const float* dp, float mean, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 change = load_some(dp + i, n - i, 0.0f) - splat(mean);
    store_some(splat(a) * load_some(p + i, n - i, 0.0f) * change, n - i, out + i);
  }
}

inline float masking_effect_row(const float* p, const float* dp, float mean, float eps, int64_t n) {
  F32x16 sum = splat(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 weight = load_some(p + i, n - i, 0.0f);
    const F32x16 effect =
        weight * (load_some(dp + i, n - i, 0.0f) - splat(mean)) / (splat(1.0f + eps) - weight);
    sum = sum + max(effect, splat(0.0f) - effect);
  }
  return sum_lanes(sum);
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#if HWY_ONCE
namespace headwater {

HWY_EXPORT(max_row);
HWY_EXPORT(exp_row);
HWY_EXPORT(dot_row);
HWY_EXPORT(add_scaled_row);
HWY_EXPORT(scale_row);
HWY_EXPORT(softmax_gradient_row);
HWY_EXPORT(masking_effect_row);

namespace gradient {

float max_of(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(max_row)(x, n); }

float exp_of(const float* x, float shift, float scale, int64_t n, float* out) {
  return HWY_DYNAMIC_DISPATCH(exp_row)(x, shift, scale, n, out);
}

float dot_of(const float* a, const float* b, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(dot_row)(a, b, n);
}

void add_scaled(float a, const float* x, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(add_scaled_row)(a, x, n, y);
}

void scale_by(float a, int64_t n, float* x) { HWY_DYNAMIC_DISPATCH(scale_row)(a, n, x); }

void softmax_gradient(float a, const float* p, const float* dp, float mean, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(softmax_gradient_row)(a, p, dp, mean, n, out);
}

float masking_effect(const float* p, const float* dp, float mean, float eps, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(masking_effect_row)(p, dp, mean, eps, n);
}

}  // namespace gradient
}  // namespace headwater
#endif  // HWY_ONCE
