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

struct Silu {
  HWY_INLINE F32x16 operator()(const F32x16& x) const {
    return x / (splat(1.0f) + exp(splat(0.0f) - x));
  }
};

// 0.5 x (1 + tanh(y)) = x / (1 + exp(-2 y)),  y = sqrt(2 / pi) (x + 0.044715 x^3)
struct Gelu {
  HWY_INLINE F32x16 operator()(const F32x16& x) const {
    constexpr float kTwoRootTwoOverPi = 1.5957691216f;
    const F32x16 cubic = fma(x * x * x, splat(0.044715f), x);
    return x / (splat(1.0f) + exp(splat(-kTwoRootTwoOverPi) * cubic));
  }
};

struct Softcap {
  float cap;
  HWY_INLINE F32x16 operator()(const F32x16& x) const {  // tanh(y) = 1 - 2 / (e^2y + 1)
    const F32x16 e = exp(x * splat(2.0f / cap));
    return splat(cap) * (splat(1.0f) - splat(2.0f) / (e + splat(1.0f)));
  }
};

// out = function(x), or function(x) * factor where factor is not null.
template <typename Function>
inline void map_row(
    const Function& function, const float* x, const float* factor, int64_t cols, float* out) {
  const int64_t whole = cols / 16 * 16;
  for (int64_t c = 0; c < whole; c += 16) {
    const F32x16 y = function(load(x + c));
    store(factor != nullptr ? y * load(factor + c) : y, out + c);
  }
  if (whole < cols) {
    const int64_t rest = cols - whole;
    const F32x16 y = function(load_tail(x + whole, rest));
    store_tail(factor != nullptr ? y * load_tail(factor + whole, rest) : y, out + whole, rest);
  }
}

inline void silu_mul_row(const float* gate, const float* up, int64_t cols, float* out) {
  map_row(Silu{}, gate, up, cols, out);
}

inline void gelu_mul_row(const float* gate, const float* up, int64_t cols, float* out) {
  map_row(Gelu{}, gate, up, cols, out);
}

inline void softcap_row(float cap, int64_t cols, float* x) {
  map_row(Softcap{cap}, x, nullptr, cols, x);
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
HWY_EXPORT(gelu_mul_row);
HWY_EXPORT(softcap_row);
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

void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads, ThreadPool& pool) {
  const int64_t head_dim = x.cols / num_heads;
  for_rows(x.rows, x.cols, pool, [&](int64_t row) {
    for (float *head = x.f32_row(row), *end = head + x.cols; head < end; head += head_dim)
      HWY_DYNAMIC_DISPATCH(rms_norm_row)(head, weight, head_dim, eps, head);
  });
}

void silu_mul(Matrix gate_up, Matrix out, ThreadPool& pool) {
  for_rows(out.rows, out.cols, pool, [&](int64_t row) {
    const float* gate = gate_up.f32_row(row);
    HWY_DYNAMIC_DISPATCH(silu_mul_row)(gate, gate + out.cols, out.cols, out.f32_row(row));
  });
}

void gelu_mul(Matrix gate_up, Matrix out, ThreadPool& pool) {
  for_rows(out.rows, out.cols, pool, [&](int64_t row) {
    const float* gate = gate_up.f32_row(row);
    HWY_DYNAMIC_DISPATCH(gelu_mul_row)(gate, gate + out.cols, out.cols, out.f32_row(row));
  });
}

void softcap(Matrix x, float cap, ThreadPool& pool) {
  for_rows(x.rows, x.cols, pool, [&](int64_t row) {
    HWY_DYNAMIC_DISPATCH(softcap_row)(cap, x.cols, x.f32_row(row));
  });
}

void add_scaled(Matrix x, float scale, Matrix out, ThreadPool& pool) {
  for_rows(x.rows, x.cols, pool, [&](int64_t row) {
    const float* from = x.f32_row(row);
    float* to = out.f32_row(row);
    for (int64_t c = 0; c < x.cols; ++c) to[c] += scale * from[c];
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
