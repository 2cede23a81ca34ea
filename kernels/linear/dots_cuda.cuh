// Few rows of activations times a weight: what one lane multiplies at a time, per format. A lane
// takes a chunk, the elements that sixteen bytes of the weight hold (kElements of them), which it
// fetches first and multiplies later.
//
// Block formats are integers times scales, and so are the activations (QuantisedRow): 15 bits in
// two bytes, one scale per 32. Products are exact, in the GPU's four-way byte dots; only scales
// round.
#pragma once

#include <cstdint>

#include "kernels/quant/decode_cuda.cuh"

namespace headwater::cuda {

constexpr int kScaleElements = 32;
constexpr float kLargestInteger = 16382;  // 2 * 8191: whole numbers of 14 bits stay what they are

// One row of activations, quantised: q = 256 * high + low; x = scale * q.
//   high [cols] | low [cols] | scales f32 [cols / 32] | sums f32 [cols / 16], of x per 16
struct QuantisedRow {
  const uint8_t* base;
  int32_t cols;

  static __host__ __device__ int64_t bytes(int64_t cols) {
    return (2 * cols + cols / 8 + cols / 4 + 15) / 16 * 16;
  }
  __device__ uint4 high(int32_t sixteen) const {
    return reinterpret_cast<const uint4*>(base)[sixteen];
  }
  __device__ uint4 low(int32_t sixteen) const {
    return reinterpret_cast<const uint4*>(base + cols)[sixteen];
  }
  __device__ float scale(int32_t sixteen) const {
    return reinterpret_cast<const float*>(base + 2 * cols)[sixteen / 2];
  }
  __device__ float sum(int32_t sixteen) const {
    return reinterpret_cast<const float*>(base + 2 * cols + cols / 8)[sixteen];
  }
};

__device__ inline int dot16(uint4 a, uint4 b) {
  int sum = __dp4a(static_cast<int>(a.x), static_cast<int>(b.x), 0);
  sum = __dp4a(static_cast<int>(a.y), static_cast<int>(b.y), sum);
  sum = __dp4a(static_cast<int>(a.z), static_cast<int>(b.z), sum);
  return __dp4a(static_cast<int>(a.w), static_cast<int>(b.w), sum);
}
// Sum of w * x over sixteen elements; w: signed bytes.
__device__ inline float dot16(uint4 w, const QuantisedRow& x, int32_t sixteen) {
  const int exact = 256 * dot16(w, x.high(sixteen)) + dot16(w, x.low(sixteen));
  return __fmul_rn(static_cast<float>(exact), x.scale(sixteen));
}
__device__ inline uint4 low_nibbles(uint4 w) {
  constexpr uint32_t kMask = 0x0F0F0F0F;
  return {w.x & kMask, w.y & kMask, w.z & kMask, w.w & kMask};
}
__device__ inline uint4 high_nibbles(uint4 w) {
  return low_nibbles({w.x >> 4, w.y >> 4, w.z >> 4, w.w >> 4});
}
// Weights are read once and by one warp: they need no place in the L1 cache.
__device__ inline uint4 fetch(const uint8_t* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
  return v;
}
template <QuantFormat kFormat>
struct Dot;

// Scalar formats: activations are f32.
template <QuantFormat kFormat>
struct ScalarDot {
  static constexpr bool kInteger = false;
  static constexpr int kElements = kFormat == QuantFormat::kF32 ? 4 : 8;
  uint4 w;
  __device__ void load(const WeightRow<kFormat>& row, int32_t chunk) {
    w = fetch(row.base + 16 * int64_t{chunk});
  }
  __device__ float dot(const float* x, int32_t chunk, float sum) const {
    const auto* from = reinterpret_cast<const float4*>(x + int64_t{chunk} * kElements);
    const float4 a = from[0];
    if constexpr (kFormat == QuantFormat::kF32) {
      sum = fmaf(__uint_as_float(w.x), a.x, sum);
      sum = fmaf(__uint_as_float(w.y), a.y, sum);
      sum = fmaf(__uint_as_float(w.z), a.z, sum);
      return fmaf(__uint_as_float(w.w), a.w, sum);
    } else {
      const float4 b = from[1];
      const float2 w0 = pair(w.x), w1 = pair(w.y), w2 = pair(w.z), w3 = pair(w.w);
      sum = fmaf(w0.x, a.x, sum);
      sum = fmaf(w0.y, a.y, sum);
      sum = fmaf(w1.x, a.z, sum);
      sum = fmaf(w1.y, a.w, sum);
      sum = fmaf(w2.x, b.x, sum);
      sum = fmaf(w2.y, b.y, sum);
      sum = fmaf(w3.x, b.z, sum);
      return fmaf(w3.y, b.w, sum);
    }
  }
  __device__ static float2 pair(uint32_t bits) {
    if constexpr (kFormat == QuantFormat::kF16) return half_pair(bits);
    return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000u)};
  }
};
template <>
struct Dot<QuantFormat::kF32> : ScalarDot<QuantFormat::kF32> {};
template <>
struct Dot<QuantFormat::kF16> : ScalarDot<QuantFormat::kF16> {};
template <>
struct Dot<QuantFormat::kBF16> : ScalarDot<QuantFormat::kBF16> {};

// Formats without a product of their own: a chunk is a run.
template <QuantFormat kFormat>
struct RunDot {
  static constexpr bool kInteger = true;
  static constexpr int kElements = kRunElements;
  using R = Run<kFormat>;
  R w;
  __device__ void load(const WeightRow<kFormat>& row, int32_t chunk) { w = R::of(row, chunk); }
  __device__ float dot(const QuantisedRow& x, int32_t chunk, float sum) const {
    for (int h = 0; h < 2; ++h) {
      const int32_t i = 2 * chunk + h;
      float product = dot16(w.q[h], x, i);
      if constexpr (R::kBias != 0) product = fmaf(-R::kBias, x.sum(i), product);
      sum = fmaf(w.scale[h], product, sum);
      if constexpr (R::kHasOffset) sum = fmaf(w.offset[h], x.sum(i), sum);
    }
    return sum;
  }
};
template <>
struct Dot<QuantFormat::kQ5_0> : RunDot<QuantFormat::kQ5_0> {};
template <>
struct Dot<QuantFormat::kQ5_1> : RunDot<QuantFormat::kQ5_1> {};
template <>
struct Dot<QuantFormat::kQ2_K> : RunDot<QuantFormat::kQ2_K> {};
template <>
struct Dot<QuantFormat::kQ3_K> : RunDot<QuantFormat::kQ3_K> {};
template <>
struct Dot<QuantFormat::kQ5_K> : RunDot<QuantFormat::kQ5_K> {};
template <>
struct Dot<QuantFormat::kIQ4_NL> : RunDot<QuantFormat::kIQ4_NL> {};
template <>
struct Dot<QuantFormat::kIQ4_XS> : RunDot<QuantFormat::kIQ4_XS> {};

template <>
struct Dot<QuantFormat::kQ8_0> {
  static constexpr bool kInteger = true;
  static constexpr int kElements = 16;
  uint4 w;
  uint16_t d;
  __device__ void load(const WeightRow<QuantFormat::kQ8_0>& row, int32_t chunk) {
    w = fetch(row.at<0>(0) + 16 * int64_t{chunk});
    d = __ldg(reinterpret_cast<const uint16_t*>(row.at<1>(chunk / 2)));
  }
  __device__ float dot(const QuantisedRow& x, int32_t chunk, float sum) const {
    return fmaf(__half2float(__ushort_as_half(d)), dot16(w, x, chunk), sum);
  }
};

template <>
struct Dot<QuantFormat::kQ4_0> {
  static constexpr bool kInteger = true;
  static constexpr int kElements = 32;
  uint4 w;
  uint16_t d;
  __device__ void load(const WeightRow<QuantFormat::kQ4_0>& row, int32_t chunk) {
    w = fetch(row.at<0>(chunk));
    d = __ldg(reinterpret_cast<const uint16_t*>(row.at<1>(chunk)));
  }
  __device__ float dot(const QuantisedRow& x, int32_t chunk, float sum) const {
    const int32_t i = 2 * chunk;
    const float products = dot16(low_nibbles(w), x, i) + dot16(high_nibbles(w), x, i + 1);
    return fmaf(
        __half2float(__ushort_as_half(d)), fmaf(-8.0f, x.sum(i) + x.sum(i + 1), products), sum);
  }
};

template <>
struct Dot<QuantFormat::kQ4_1> {
  static constexpr bool kInteger = true;
  static constexpr int kElements = 32;
  uint4 w;
  uint32_t dm;
  __device__ void load(const WeightRow<QuantFormat::kQ4_1>& row, int32_t chunk) {
    w = fetch(row.at<0>(chunk));
    dm = __ldg(reinterpret_cast<const uint32_t*>(row.at<1>(chunk)));
  }
  __device__ float dot(const QuantisedRow& x, int32_t chunk, float sum) const {
    const int32_t i = 2 * chunk;
    const float2 factors = half_pair(dm);
    sum = fmaf(factors.x, dot16(low_nibbles(w), x, i) + dot16(high_nibbles(w), x, i + 1), sum);
    return fmaf(factors.y, x.sum(i) + x.sum(i + 1), sum);
  }
};

// A chunk: sixteen bytes c of the 128 of nibbles, of sub-blocks 2 (c / 2) and the one behind it.
template <>
struct Dot<QuantFormat::kQ4_K> {
  static constexpr bool kInteger = true;
  static constexpr int kElements = 32;
  uint4 w, header;
  __device__ void load(const WeightRow<QuantFormat::kQ4_K>& row, int32_t chunk) {
    const uint8_t* block = row.at<0>(chunk / 8);
    header = __ldg(reinterpret_cast<const uint4*>(block));
    w = fetch(block + 16 + 16 * (chunk % 8));
  }
  __device__ float dot(const QuantisedRow& x, int32_t chunk, float sum) const {
    const int32_t c = chunk % 8, j = c / 2;  // pair of sub-blocks
    // Two six-bit scales and minima, of sub-blocks 2 j and 2 j + 1: sixteen bits of each word.
    const uint32_t shift = 16 * (j % 2);
    const uint32_t a = header.y >> shift, b = header.z >> shift, e = header.w >> shift;
    const uint32_t scales = j < 2 ? a & 0x3F3F : (e & 0x0F0F) | (a >> 2 & 0x3030);
    const uint32_t minima = j < 2 ? b & 0x3F3F : (e >> 4 & 0x0F0F) | (b >> 2 & 0x3030);
    const float2 factors = half_pair(header.x);
    const int32_t i = chunk / 8 * 16 + 4 * j + c % 2;
    const float products =
        fmaf(static_cast<float>(scales >> 8),
             dot16(high_nibbles(w), x, i + 2),
             __fmul_rn(static_cast<float>(scales & 0xFF), dot16(low_nibbles(w), x, i)));
    const float offsets = fmaf(static_cast<float>(minima >> 8),
                               x.sum(i + 2),
                               __fmul_rn(static_cast<float>(minima & 0xFF), x.sum(i)));
    return fmaf(-factors.y, offsets, fmaf(factors.x, products, sum));
  }
};

// A chunk: sixteen bytes c of the 128 of low nibbles, of runs r and r + 2 of a half.
template <>
struct Dot<QuantFormat::kQ6_K> {
  static constexpr bool kInteger = true;
  static constexpr int kElements = 32;
  uint4 low, high;
  uint16_t d;
  int8_t scale_low, scale_high;
  __device__ void load(const WeightRow<QuantFormat::kQ6_K>& row, int32_t chunk) {
    const int32_t block = chunk / 8, c = chunk % 8;
    low = fetch(row.at<0>(0) + 16 * int64_t{chunk});
    high = __ldg(reinterpret_cast<const uint4*>(row.at<1>(block) + 32 * (c / 4) + 16 * (c % 2)));
    const auto* scales =
        reinterpret_cast<const int8_t*>(row.at<2>(block) + 8 * (c / 4) + 2 * (c % 4 / 2) + c % 2);
    scale_low = __ldg(scales);
    scale_high = __ldg(scales + 4);
    d = __ldg(reinterpret_cast<const uint16_t*>(row.at<3>(block)));
  }
  __device__ float dot(const QuantisedRow& x, int32_t chunk, float sum) const {
    const int32_t c = chunk % 8, r = c % 4 / 2;
    const int32_t i = chunk / 8 * 16 + 8 * (c / 4) + 2 * r + c % 2;
    const uint4 a = low_nibbles(low), b = high_nibbles(low);
    const auto six = [&](uint4 nibbles, int shift) -> uint4 {
      constexpr uint32_t kMask = 0x03030303;
      return {nibbles.x | (high.x >> shift & kMask) << 4,
              nibbles.y | (high.y >> shift & kMask) << 4,
              nibbles.z | (high.z >> shift & kMask) << 4,
              nibbles.w | (high.w >> shift & kMask) << 4};
    };
    const float first = fmaf(-32.0f, x.sum(i), dot16(six(a, 2 * r), x, i));
    const float second = fmaf(-32.0f, x.sum(i + 4), dot16(six(b, 2 * r + 4), x, i + 4));
    return fmaf(__half2float(__ushort_as_half(d)),
                fmaf(static_cast<float>(scale_low),
                     first,
                     __fmul_rn(static_cast<float>(scale_high), second)),
                sum);
  }
};

}  // namespace headwater::cuda
