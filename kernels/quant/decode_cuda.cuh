// Weight formats on the GPU (layout_cuda.cuh: how they lie there; quant_format.cpp: what the bytes
// mean). A block format is a row of planes_of, a Run and a line in with_format: embedding, products
// of few rows and products on tensor cores follow from these.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/quant/layout_cuda.cuh"

namespace headwater::cuda {

constexpr int kRunElements = 32;

__device__ inline float f16_at(const uint8_t* p) {
  return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t*>(p)));
}
__device__ inline float2 half_pair(uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
__device__ inline uint4 words_at(const uint8_t* p) { return *reinterpret_cast<const uint4*>(p); }

// A row of a weight, in device memory or a copy of some of its blocks in shared memory.
template <QuantFormat kFormat>
struct WeightRow {
  const uint8_t* base;
  int64_t blocks;

  // Where block `block` has its bytes of a plane.
  template <int kPlane = 0>
  __device__ const uint8_t* at(int64_t block) const {
    constexpr Planes kPlanes = planes_of(kFormat);
    return base + plane_offset(kPlanes, kPlane, blocks) + block * kPlanes.segments[kPlane].stride();
  }
};

// Scalar formats: one element.
template <QuantFormat kFormat>
__device__ inline float scalar_at(const uint8_t* p) {
  if constexpr (kFormat == QuantFormat::kF32) return *reinterpret_cast<const float*>(p);
  if constexpr (kFormat == QuantFormat::kF16) return f16_at(p);
  return __uint_as_float(uint32_t{*reinterpret_cast<const uint16_t*>(p)} << 16);
}

// Block formats: 32 consecutive elements of a row, of which element i is
// scale[i / 16] * (byte i of q - bias) + offset[i / 16], rounded as QuantTraits::decode does.
// kSigned: the bytes are; others are below 64.
template <int kTheBias, bool kBytesAreSigned, bool kOffset>
struct RunOf {
  static constexpr int kBias = kTheBias;
  static constexpr bool kSigned = kBytesAreSigned;
  static constexpr bool kHasOffset = kOffset;
  uint4 q[2];
  float scale[2], offset[2];

  __device__ void set_scale(float value) { scale[0] = scale[1] = value; }
  __device__ void set_offset(float value) { offset[0] = offset[1] = value; }
};
template <QuantFormat kFormat>
struct Run;  // of(row, run): elements 32 * run ... of the row

__device__ inline uint4 masked(uint4 w, int shift, uint32_t mask) {
  return {w.x >> shift & mask, w.y >> shift & mask, w.z >> shift & mask, w.w >> shift & mask};
}
__device__ inline uint4 either(uint4 a, uint4 b) {
  return {a.x | b.x, a.y | b.y, a.z | b.z, a.w | b.w};
}
__device__ inline uint4 shifted_left(uint4 w, int shift) {
  return {w.x << shift, w.y << shift, w.z << shift, w.w << shift};
}
constexpr uint32_t kNibbles = 0x0F0F0F0F, kPairs = 0x03030303, kBits = 0x01010101;

// 32 nibbles in 16 bytes: elements 0..15 are the low ones, 16..31 the high ones.
__device__ inline void split_nibbles(uint4 w, uint4 (&q)[2]) {
  q[0] = masked(w, 0, kNibbles);
  q[1] = masked(w, 4, kNibbles);
}
// Bits 0..15 as the fifth bits of sixteen bytes.
__device__ inline uint4 fifth_bits(uint32_t bits) {
  const auto spread = [](uint32_t four) { return (four & 15) * 0x00204081u << 4 & kBits << 4; };
  return {spread(bits), spread(bits >> 4), spread(bits >> 8), spread(bits >> 12)};
}

template <>
struct Run<QuantFormat::kQ8_0> : RunOf<0, true, false> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ8_0>& row, int64_t run) {
    Run r;
    r.q[0] = words_at(row.at<0>(run));
    r.q[1] = words_at(row.at<0>(run) + 16);
    r.set_scale(f16_at(row.at<1>(run)));
    return r;
  }
};

template <>
struct Run<QuantFormat::kQ4_0> : RunOf<8, false, false> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ4_0>& row, int64_t run) {
    Run r;
    split_nibbles(words_at(row.at<0>(run)), r.q);
    r.set_scale(f16_at(row.at<1>(run)));
    return r;
  }
};

template <>
struct Run<QuantFormat::kQ4_1> : RunOf<0, false, true> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ4_1>& row, int64_t run) {
    Run r;
    split_nibbles(words_at(row.at<0>(run)), r.q);
    const float2 factors = half_pair(*reinterpret_cast<const uint32_t*>(row.at<1>(run)));
    r.set_scale(factors.x);
    r.set_offset(factors.y);
    return r;
  }
};

template <>
struct Run<QuantFormat::kQ5_0> : RunOf<16, false, false> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ5_0>& row, int64_t run) {
    Run r;
    split_nibbles(words_at(row.at<0>(run)), r.q);
    const uint32_t high = *reinterpret_cast<const uint32_t*>(row.at<1>(run));
    r.q[0] = either(r.q[0], fifth_bits(high));
    r.q[1] = either(r.q[1], fifth_bits(high >> 16));
    r.set_scale(f16_at(row.at<2>(run)));
    return r;
  }
};

template <>
struct Run<QuantFormat::kQ5_1> : RunOf<0, false, true> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ5_1>& row, int64_t run) {
    Run r;
    split_nibbles(words_at(row.at<0>(run)), r.q);
    const uint2 header = *reinterpret_cast<const uint2*>(row.at<1>(run));
    r.q[0] = either(r.q[0], fifth_bits(header.y));
    r.q[1] = either(r.q[1], fifth_bits(header.y >> 16));
    const float2 factors = half_pair(header.x);
    r.set_scale(factors.x);
    r.set_offset(factors.y);
    return r;
  }
};

// Four bytes of kNl4Values by the four nibbles in the lower half of `index`.
__device__ inline uint32_t nl4_bytes(uint32_t index) {
  constexpr auto word = [](int i) {
    uint32_t bytes = 0;
    for (int b = 0; b < 4; ++b)
      bytes |= static_cast<uint32_t>(static_cast<uint8_t>(kNl4Values[4 * i + b])) << (8 * b);
    return bytes;
  };
  constexpr uint32_t kWord0 = word(0), kWord1 = word(1), kWord2 = word(2), kWord3 = word(3);
  const uint32_t low = __byte_perm(kWord0, kWord1, index & 0x7777);
  const uint32_t high = __byte_perm(kWord2, kWord3, index & 0x7777);
  return __byte_perm(low, high, 0x3210 | (index & 0x8888) >> 1);
}
__device__ inline void split_nl4(uint4 w, uint4 (&q)[2]) {
  const auto split = [](uint32_t nibbles, uint32_t& low, uint32_t& high) {
    const uint32_t first = nl4_bytes(nibbles), second = nl4_bytes(nibbles >> 16);
    low = __byte_perm(first, second, 0x6420);
    high = __byte_perm(first, second, 0x7531);
  };
  split(w.x, q[0].x, q[1].x);
  split(w.y, q[0].y, q[1].y);
  split(w.z, q[0].z, q[1].z);
  split(w.w, q[0].w, q[1].w);
}

template <>
struct Run<QuantFormat::kIQ4_NL> : RunOf<0, true, false> {
  __device__ static Run of(const WeightRow<QuantFormat::kIQ4_NL>& row, int64_t run) {
    Run r;
    split_nl4(words_at(row.at<0>(run)), r.q);
    r.set_scale(f16_at(row.at<1>(run)));
    return r;
  }
};

// Below, a block is eight runs: run j of it.

template <>
struct Run<QuantFormat::kIQ4_XS> : RunOf<0, true, false> {
  __device__ static Run of(const WeightRow<QuantFormat::kIQ4_XS>& row, int64_t run) {
    Run r;
    const int64_t block = run / 8;
    const int j = static_cast<int>(run % 8);
    split_nl4(words_at(row.at<0>(block) + 16 * j), r.q);
    const uint2 header = *reinterpret_cast<const uint2*>(row.at<1>(block));
    const uint32_t scale = (header.y >> (4 * j) & 15) | (header.x >> (16 + 2 * j) & 3) << 4;
    r.set_scale(half_pair(header.x).x * static_cast<float>(static_cast<int>(scale) - 32));
    return r;
  }
};

// Four runs share the bits of 32 bytes, two bits each; two scales and minima a run.
template <>
struct Run<QuantFormat::kQ2_K> : RunOf<0, false, true> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ2_K>& row, int64_t run) {
    Run r;
    const int64_t block = run / 8;
    const int j = static_cast<int>(run % 8);
    const uint8_t* bits = row.at<0>(block) + 32 * (j / 4);
    const float2 factors = half_pair(*reinterpret_cast<const uint32_t*>(row.at<2>(block)));
    for (int h = 0; h < 2; ++h) {
      r.q[h] = masked(words_at(bits + 16 * h), 2 * (j % 4), kPairs);
      const uint8_t s = row.at<1>(block)[2 * j + h];
      r.scale[h] = factors.x * static_cast<float>(s & 15);
      r.offset[h] = -factors.y * static_cast<float>(s >> 4);
    }
    return r;
  }
};

template <>
struct Run<QuantFormat::kQ3_K> : RunOf<4, false, false> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ3_K>& row, int64_t run) {
    Run r;
    const int64_t block = run / 8;
    const int j = static_cast<int>(run % 8);
    const uint8_t* bits = row.at<0>(block) + 32 * (j / 4);
    const uint8_t* s = row.at<2>(block);
    const float d = f16_at(row.at<3>(block));
    for (int h = 0; h < 2; ++h) {
      const uint4 third = masked(words_at(row.at<1>(block) + 16 * h), j, kBits);
      r.q[h] = either(masked(words_at(bits + 16 * h), 2 * (j % 4), kPairs), shifted_left(third, 2));
      const int i = 2 * j + h;  // of sixteen scales
      const int low = s[i % 8] >> (4 * (i / 8)) & 15;
      const int high = s[8 + i % 4] >> (2 * (i / 4)) & 3;
      r.scale[h] = d * static_cast<float>((low | high << 4) - 32);
    }
    return r;
  }
};

// Scale and minimum, six bits each, of run j: header is two f16 factors and the twelve bytes.
__device__ inline void set_scale_and_offset(RunOf<0, false, true>& r, uint4 header, int j) {
  const int shift = 8 * (j % 4);
  const uint32_t a = header.y >> shift, b = header.z >> shift, c = header.w >> shift;
  const uint32_t scale = j < 4 ? a & 63 : (c & 15) | (a >> 2 & 48);
  const uint32_t minimum = j < 4 ? b & 63 : (c >> 4 & 15) | (b >> 2 & 48);
  const float2 factors = half_pair(header.x);
  r.set_scale(factors.x * static_cast<float>(scale));
  r.set_offset(-factors.y * static_cast<float>(minimum));
}

template <>
struct Run<QuantFormat::kQ4_K> : RunOf<0, false, true> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ4_K>& row, int64_t run) {
    Run r;
    const uint8_t* block = row.at<0>(run / 8);
    const int j = static_cast<int>(run % 8);
    for (int h = 0; h < 2; ++h)
      r.q[h] = masked(words_at(block + 16 + 32 * (j / 2) + 16 * h), 4 * (j % 2), kNibbles);
    set_scale_and_offset(r, words_at(block), j);
    return r;
  }
};

template <>
struct Run<QuantFormat::kQ5_K> : RunOf<0, false, true> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ5_K>& row, int64_t run) {
    Run r;
    const uint8_t* block = row.at<0>(run / 8);
    const int j = static_cast<int>(run % 8);
    for (int h = 0; h < 2; ++h) {
      const uint4 fifth = masked(words_at(block + 16 + 16 * h), j, kBits);
      r.q[h] = either(masked(words_at(block + 48 + 32 * (j / 2) + 16 * h), 4 * (j % 2), kNibbles),
                      shifted_left(fifth, 4));
    }
    set_scale_and_offset(r, words_at(block), j);
    return r;
  }
};

// Two runs share the nibbles of 32 bytes, four the pairs of bits of 32 others.
template <>
struct Run<QuantFormat::kQ6_K> : RunOf<32, false, false> {
  __device__ static Run of(const WeightRow<QuantFormat::kQ6_K>& row, int64_t run) {
    Run r;
    const int64_t block = run / 8;
    const int j = static_cast<int>(run % 8);
    const uint8_t* low = row.at<0>(block) + 64 * (j / 4) + 32 * (j % 2);
    const uint8_t* high = row.at<1>(block) + 32 * (j / 4);
    const auto* scales = reinterpret_cast<const int8_t*>(row.at<2>(block) + 2 * j);
    const float d = f16_at(row.at<3>(block));
    for (int h = 0; h < 2; ++h) {
      r.q[h] = either(masked(words_at(low + 16 * h), 4 * (j % 4 / 2), kNibbles),
                      shifted_left(masked(words_at(high + 16 * h), 2 * (j % 4), kPairs), 4));
      r.scale[h] = d * static_cast<float>(scales[h]);
    }
    return r;
  }
};

__device__ inline uint32_t word_of(const uint4 (&q)[2], int i) {
  const uint4& half = q[i / 4];
  return i % 4 == 0 ? half.x : i % 4 == 1 ? half.y : i % 4 == 2 ? half.z : half.w;
}

// Elements 4 * word ... of a run, to the bits of QuantTraits::decode.
template <typename R>
__device__ inline float4 floats_of(const R& run, int word) {
  const uint32_t bytes = word_of(run.q, word);
  float out[4];
  for (int i = 0; i < 4; ++i) {
    const int q = R::kSigned ? static_cast<int8_t>(bytes >> (8 * i)) : bytes >> (8 * i) & 0xFF;
    out[i] = __fmul_rn(run.scale[word / 4], static_cast<float>(q - R::kBias));
    if constexpr (R::kHasOffset) out[i] = __fadd_rn(out[i], run.offset[word / 4]);
  }
  return {out[0], out[1], out[2], out[3]};
}

// The same in f16, rounded once.
template <QuantFormat kFormat>
__device__ inline uint2 halves_of(const Run<kFormat>& run, int word) {
  using R = Run<kFormat>;
  // 1024 + a byte is the f16 with that byte below 0x64; sums up to 2047 are exact.
  const uint32_t bytes = word_of(run.q, word) ^ (R::kSigned ? 0x80808080u : 0u);
  const __half2 zero = __float2half2_rn(1024.0f + R::kBias + (R::kSigned ? 128 : 0));
  const float scale = run.scale[word / 4];
  const auto pair = [&](uint32_t selector) {
    const uint32_t raised = __byte_perm(bytes, 0x64646464u, selector);
    const __half2 q = __hsub2(*reinterpret_cast<const __half2*>(&raised), zero);
    __half2 value;
    if constexpr (planes_of(kFormat).elements > kRunElements) {  // no f16 holds the scale
      float2 v = __half22float2(q);
      if constexpr (R::kHasOffset) {
        const float offset = run.offset[word / 4];
        v = {fmaf(v.x, scale, offset), fmaf(v.y, scale, offset)};
      } else {
        v = {v.x * scale, v.y * scale};
      }
      value = __floats2half2_rn(v.x, v.y);
    } else if constexpr (R::kHasOffset) {
      value = __hfma2(q, __float2half2_rn(scale), __float2half2_rn(run.offset[word / 4]));
    } else {
      value = __hmul2(q, __float2half2_rn(scale));
    }
    return *reinterpret_cast<const uint32_t*>(&value);
  };
  return {pair(0x4140), pair(0x4342)};
}

// Calls body(constant) with the format as a compile-time constant.
template <QuantFormat kFormat>
struct FormatConstant {
  static constexpr QuantFormat value = kFormat;
};
template <typename Body>
void with_format(QuantFormat format, const Body& body) {
  switch (format) {
    case QuantFormat::kF32:
      return body(FormatConstant<QuantFormat::kF32>{});
    case QuantFormat::kF16:
      return body(FormatConstant<QuantFormat::kF16>{});
    case QuantFormat::kBF16:
      return body(FormatConstant<QuantFormat::kBF16>{});
    case QuantFormat::kQ8_0:
      return body(FormatConstant<QuantFormat::kQ8_0>{});
    case QuantFormat::kQ4_0:
      return body(FormatConstant<QuantFormat::kQ4_0>{});
    case QuantFormat::kQ4_1:
      return body(FormatConstant<QuantFormat::kQ4_1>{});
    case QuantFormat::kQ4_K:
      return body(FormatConstant<QuantFormat::kQ4_K>{});
    case QuantFormat::kQ6_K:
      return body(FormatConstant<QuantFormat::kQ6_K>{});
    case QuantFormat::kQ5_0:
      return body(FormatConstant<QuantFormat::kQ5_0>{});
    case QuantFormat::kQ5_1:
      return body(FormatConstant<QuantFormat::kQ5_1>{});
    case QuantFormat::kQ2_K:
      return body(FormatConstant<QuantFormat::kQ2_K>{});
    case QuantFormat::kQ3_K:
      return body(FormatConstant<QuantFormat::kQ3_K>{});
    case QuantFormat::kQ5_K:
      return body(FormatConstant<QuantFormat::kQ5_K>{});
    case QuantFormat::kIQ4_NL:
      return body(FormatConstant<QuantFormat::kIQ4_NL>{});
    case QuantFormat::kIQ4_XS:
      return body(FormatConstant<QuantFormat::kIQ4_XS>{});
  }
  HW_CHECK(false, "a weight format without a decoder for the GPU", static_cast<int>(format));
}

}  // namespace headwater::cuda
