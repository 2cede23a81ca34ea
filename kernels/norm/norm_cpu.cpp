#include "kernels/norm/norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm/norm_cpu.cpp"
#include <hwy/foreach_target.h>

#include "kernels/base/lanes16-inl.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

// The last 1 to 15 elements as sixteen lanes, padded by zeros.
HWY_INLINE F32x16 load_tail(const float* p, int64_t count) {
  float lanes[16] = {};
  std::copy_n(p, count, lanes);
  return load(lanes);
}
HWY_INLINE void store_tail(const F32x16& a, float* p, int64_t count) {
  float lanes[16];
  store(a, lanes);
  std::copy_n(lanes, count, p);
}

inline void rms_norm_row(const float* x, const float* weight, int64_t cols, float eps, float* out) {
  F32x16 sum = splat(0.0f);
  const int64_t whole = cols / 16 * 16;
  for (int64_t c = 0; c < whole; c += 16) sum = fma(load(x + c), load(x + c), sum);
  if (whole < cols) {
    const F32x16 tail = load_tail(x + whole, cols - whole);
    sum = fma(tail, tail, sum);
  }
  const float mean = sum_lanes(sum) / static_cast<float>(cols);
  const F32x16 scale = splat(1.0f / std::sqrt(mean + eps));
  for (int64_t c = 0; c < whole; c += 16) store(load(x + c) * scale * load(weight + c), out + c);
  if (whole < cols) {
    const int64_t rest = cols - whole;
    store_tail(
        load_tail(x + whole, rest) * scale * load_tail(weight + whole, rest), out + whole, rest);
  }
}

HWY_INLINE F32x16 silu(const F32x16& gate) {
  return gate / (splat(1.0f) + exp(splat(0.0f) - gate));
}

inline void silu_mul_row(const float* gate, const float* up, int64_t cols, float* out) {
  const int64_t whole = cols / 16 * 16;
  for (int64_t c = 0; c < whole; c += 16) store(silu(load(gate + c)) * load(up + c), out + c);
  if (whole < cols) {
    const int64_t rest = cols - whole;
    store_tail(
        silu(load_tail(gate + whole, rest)) * load_tail(up + whole, rest), out + whole, rest);
  }
}

inline const char* instruction_set_name() {
#if HWY_TARGET == HWY_AVX3_DL
  return "AVX-512 VNNI";
#elif HWY_TARGET == HWY_SCALAR
  return "portable";
#else
  return hwy::TargetName(HWY_TARGET);
#endif
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#if HWY_ONCE
namespace headwater {

HWY_EXPORT(rms_norm_row);
HWY_EXPORT(silu_mul_row);
HWY_EXPORT(instruction_set_name);

namespace cpu {
namespace {

// Rows in tasks of about this many elements: below it, waking a worker costs more than the work.
constexpr int64_t kTaskElements = 16 * 1024;

template <typename Body>
void for_rows(int64_t rows, int64_t cols, ThreadPool& pool, const Body& body) {
  const int64_t task_rows = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(cols, 1));
  pool.parallel_for((rows + task_rows - 1) / task_rows, [&](int64_t task, int) {
    const int64_t end = std::min((task + 1) * task_rows, rows);
    for (int64_t row = task * task_rows; row < end; ++row) body(row);
  });
}

}  // namespace

void rms_norm(Matrix x, const float* weight, float eps, Matrix out, ThreadPool& pool) {
  for_rows(x.rows, x.cols, pool, [&](int64_t row) {
    HWY_DYNAMIC_DISPATCH(rms_norm_row)(x.f32_row(row), weight, x.cols, eps, out.f32_row(row));
  });
}

void silu_mul(Matrix gate_up, Matrix out, ThreadPool& pool) {
  for_rows(out.rows, out.cols, pool, [&](int64_t row) {
    const float* gate = gate_up.f32_row(row);
    HWY_DYNAMIC_DISPATCH(silu_mul_row)(gate, gate + out.cols, out.cols, out.f32_row(row));
  });
}

void add_bias(Matrix x, const float* bias, ThreadPool& pool) {
  for_rows(x.rows, x.cols, pool, [&](int64_t row) {
    float* out = x.f32_row(row);
    for (int64_t c = 0; c < x.cols; ++c) out[c] += bias[c];
  });
}

const char* instruction_set() { return HWY_DYNAMIC_DISPATCH(instruction_set_name)(); }

}  // namespace cpu
}  // namespace headwater
#endif  // HWY_ONCE
