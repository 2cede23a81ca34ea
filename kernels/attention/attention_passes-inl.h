// Per-target header: the products of attention. Where the keys and values of a block come from, and
// the passes over them that keep their sums in registers.
#include <bit>
#include <cstdint>

#include "kernels/attention/attention_view.h"
#include "kernels/attention/paged_kv_cpu.h"

#if defined(HEADWATER_ATTENTION_PASSES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWATER_ATTENTION_PASSES_INL_H_
#undef HEADWATER_ATTENTION_PASSES_INL_H_
#else
#define HEADWATER_ATTENTION_PASSES_INL_H_
#endif

#include "kernels/base/lanes16-inl.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

using cpu::kKeys;

HWY_INLINE F32x16 load_kv(const std::byte* p, DType format) {
  switch (format) {
    case DType::kF16:
      return load_f16(reinterpret_cast<const uint16_t*>(p));
    case DType::kBF16:
      return load_bf16(reinterpret_cast<const uint16_t*>(p));
    default:
      return load(reinterpret_cast<const float*>(p));
  }
}

// Sixteen-lane vectors per row that a pass accumulates: as many as the registers hold, so that
// enough independent sums hide the latency of the multiply-add.
template <int kRows>
constexpr int kPassVectors = kRegs == 1 || kRows == 1 ? 4 : (kRows == 2 ? 2 : 1);

// Where the keys and values of a block come from. Widened to fp32 once for the many rows of a
// prefill tile: keys [head_dim][64], values [64][head_dim].
struct WideBlock {
  const float* k;
  const float* v;
  int32_t head_dim;

  HWY_INLINE bool has_group(int) const { return true; }
  HWY_INLINE F32x16 keys(int group, int32_t d) const {
    return load(k + int64_t{d} * kKeys + 16 * group);
  }
  HWY_INLINE F32x16 values(int token, int32_t d) const {
    return load(v + int64_t{token} * head_dim + d);
  }
};

// Straight from the pages for the few rows of a decode: each element is read and widened once.
template <DType kFormat>
struct PageBlock {
  const std::byte* k[4];  // of each group of 16 tokens; null: nothing in it is seen
  const std::byte* v[4];
  int32_t head_dim;

  HWY_INLINE bool has_group(int group) const { return k[group] != nullptr; }
  HWY_INLINE F32x16 keys(int group, int32_t d) const {
    return load_kv(k[group] + int64_t{d} * 16 * dtype_bytes(kFormat), kFormat);
  }
  HWY_INLINE F32x16 values(int token, int32_t d) const {
    return load_kv(v[token / 16] + (int64_t{token % 16} * head_dim + d) * dtype_bytes(kFormat),
                   kFormat);
  }
};

// Pointers to the groups of a block that somebody sees; the others may be holes.
template <DType kFormat>
PageBlock<kFormat> page_block(const cpu::HeadPages& pages, int64_t block, uint64_t seen) {
  PageBlock<kFormat> source;
  source.head_dim = pages.group->page.head_dim;
  for (int g = 0; g < 4; ++g) {
    const auto position = static_cast<int32_t>(block * kKeys + 16 * g);
    const bool visible = (seen >> (16 * g) & 0xFFFF) != 0;
    source.k[g] = visible ? pages.k_group(position) : nullptr;
    source.v[g] = visible ? pages.v_token(position) : nullptr;
  }
  return source;
}

// What no row of the task sees is not read.
template <DType kFormat>
WideBlock widen_block(const PageBlock<kFormat>& pages, uint64_t seen, float* k, float* v) {
  const int32_t head_dim = pages.head_dim;
  for (int g = 0; g < 4; ++g)
    for (int32_t d = 0; pages.has_group(g) && d < head_dim; ++d)
      store(pages.keys(g, d), k + int64_t{d} * kKeys + 16 * g);
  for (uint64_t left = seen; left != 0; left &= left - 1) {
    const int t = std::countr_zero(left);
    for (int32_t d = 0; d < head_dim; d += 16)
      store(pages.values(t, d), v + int64_t{t} * head_dim + d);
  }
  return {k, v, head_dim};
}

// logits[r][64] = q[r] . k for kRows consecutive rows.
template <int kRows, typename Block>
HWY_NOINLINE void multiply_keys(const float* q, const Block& block, float* logits) {
  constexpr int kVectors = kPassVectors<kRows>;
  const int32_t head_dim = block.head_dim;
  for (int first = 0; first < 4; first += kVectors) {
    bool any = false;
    for (int g = 0; g < kVectors; ++g) any = any || block.has_group(first + g);
    if (!any) continue;  // masked by the softmax
    F32x16 acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int g = 0; g < kVectors; ++g) acc[r][g] = splat(0.0f);
    for (int32_t d = 0; d < head_dim; ++d) {
      F32x16 keys[kVectors];
#pragma GCC unroll 4
      for (int g = 0; g < kVectors; ++g)
        keys[g] = block.has_group(first + g) ? block.keys(first + g, d) : splat(0.0f);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F32x16 value = splat(q[int64_t{r} * head_dim + d]);
#pragma GCC unroll 4
        for (int g = 0; g < kVectors; ++g) acc[r][g] = fma(value, keys[g], acc[r][g]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int g = 0; g < kVectors; ++g) store(acc[r][g], logits + r * kKeys + 16 * (first + g));
  }
}

// values[r] += sum over set bits t of seen, in order, of weights[r][t] * v[t].
template <int kRows, int kVectors, typename Block>
HWY_INLINE void add_value_columns(const float* weights,
                                  const Block& block,
                                  int32_t first,
                                  uint64_t seen,
                                  float* values,
                                  int64_t value_stride) {
  F32x16 acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) acc[r][i] = load(values + r * value_stride + first + 16 * i);
  const auto add = [&](int t) HWY_ATTR {
    F32x16 token[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) token[i] = block.values(t, first + 16 * i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32x16 weight = splat(weights[r * kKeys + t]);
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[r][i] = fma(weight, token[i], acc[r][i]);
    }
  };
  if (seen == ~uint64_t{0}) {
    for (int t = 0; t < kKeys; ++t) add(t);
  } else {
    for (; seen != 0; seen &= seen - 1) add(std::countr_zero(seen));
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) store(acc[r][i], values + r * value_stride + first + 16 * i);
}

template <int kRows, typename Block>
HWY_NOINLINE void add_values(
    const float* weights, const Block& block, uint64_t seen, float* values, int64_t value_stride) {
  constexpr int kVectors = kPassVectors<kRows>;
  constexpr int32_t kWidth = 16 * kVectors;
  int32_t d = 0;
  for (; d + kWidth <= block.head_dim; d += kWidth)
    add_value_columns<kRows, kVectors>(weights, block, d, seen, values, value_stride);
  for (; d < block.head_dim; d += 16)
    add_value_columns<kRows, 1>(weights, block, d, seen, values, value_stride);
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#endif  // per-target guard
