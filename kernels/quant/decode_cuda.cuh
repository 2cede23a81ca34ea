// Weight formats on the GPU (layout_cuda.cuh: how they lie there; quant_format.cpp: what the bytes
// mean): eight consecutive elements of a row at a time, to the same bits as QuantTraits::decode. A
// new format is a row of planes_of, a Decoder and a line in with_format.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/base/check.h"
#include "kernels/quant/layout_cuda.cuh"

namespace headwater::cuda {

constexpr int kUnit = 8;  // elements of one decode

__device__ inline float f16_at(const uint8_t* p) {
  return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t*>(p)));
}
__device__ inline float bf16_bits(uint32_t bits) { return __uint_as_float(bits << 16); }

// A row of a weight in device memory.
template <QuantFormat kFormat>
struct WeightRow {
  const uint8_t* base;
  int64_t blocks;

  // Where block `block` has its bytes of a plane.
  template <int kPlane = 0>
  __device__ const uint8_t* at(int64_t block) const {
    constexpr Planes kPlanes = planes_of(kFormat);
    return base + plane_offset(kPlanes, kPlane, blocks) + block * kPlanes.segments[kPlane].bytes;
  }
};

// Block formats: kElements a block; decode(row, block, sub, out): elements 8 * sub ... of the
// block. Scalar formats (kElements == 1) also decode one element, at any column.
template <QuantFormat kFormat>
struct Decoder;

template <>
struct Decoder<QuantFormat::kF32> {
  static constexpr int kElements = 1;
  using Row = WeightRow<QuantFormat::kF32>;
  __device__ static float one(const uint8_t* p) { return *reinterpret_cast<const float*>(p); }
  __device__ static void decode(const Row& row, int64_t first, int, float (&out)[kUnit]) {
    const float4 a = reinterpret_cast<const float4*>(row.at(first))[0];
    const float4 b = reinterpret_cast<const float4*>(row.at(first))[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
  }
};

template <>
struct Decoder<QuantFormat::kF16> {
  static constexpr int kElements = 1;
  using Row = WeightRow<QuantFormat::kF16>;
  __device__ static float one(const uint8_t* p) { return f16_at(p); }
  __device__ static void decode(const Row& row, int64_t first, int, float (&out)[kUnit]) {
    const uint4 words = *reinterpret_cast<const uint4*>(row.at(first));
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(w[i])));
      out[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(w[i] >> 16)));
    }
  }
};

template <>
struct Decoder<QuantFormat::kBF16> {
  static constexpr int kElements = 1;
  using Row = WeightRow<QuantFormat::kBF16>;
  __device__ static float one(const uint8_t* p) {
    return bf16_bits(*reinterpret_cast<const uint16_t*>(p));
  }
  __device__ static void decode(const Row& row, int64_t first, int, float (&out)[kUnit]) {
    const uint4 words = *reinterpret_cast<const uint4*>(row.at(first));
    const uint32_t w[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = bf16_bits(w[i] & 0xFFFFu);
      out[2 * i + 1] = bf16_bits(w[i] >> 16);
    }
  }
};

template <>
struct Decoder<QuantFormat::kQ8_0> {
  static constexpr int kElements = 32;
  using Row = WeightRow<QuantFormat::kQ8_0>;
  __device__ static void decode(const Row& row, int64_t block, int sub, float (&out)[kUnit]) {
    const float d = f16_at(row.at<1>(block));
    const uint2 bytes = reinterpret_cast<const uint2*>(row.at<0>(block))[sub];
    for (int i = 0; i < kUnit; ++i) {
      const uint32_t word = i < 4 ? bytes.x : bytes.y;
      out[i] = static_cast<float>(static_cast<int8_t>(word >> (8 * (i % 4)))) * d;
    }
  }
};

// 32 nibbles in 16 bytes: elements 0..15 are the low ones, 16..31 the high ones.
__device__ inline void nibbles(const uint8_t* bytes, int sub, float (&out)[kUnit]) {
  const uint2 words = reinterpret_cast<const uint2*>(bytes)[sub % 2];
  for (int i = 0; i < kUnit; ++i) {
    const uint32_t word = i < 4 ? words.x : words.y;
    out[i] = static_cast<float>(word >> (8 * (i % 4) + (sub < 2 ? 0 : 4)) & 15);
  }
}

template <>
struct Decoder<QuantFormat::kQ4_0> {
  static constexpr int kElements = 32;
  using Row = WeightRow<QuantFormat::kQ4_0>;
  __device__ static void decode(const Row& row, int64_t block, int sub, float (&out)[kUnit]) {
    const float d = f16_at(row.at<1>(block));
    nibbles(row.at<0>(block), sub, out);
    for (float& value : out) value = (value - 8.0f) * d;
  }
};

template <>
struct Decoder<QuantFormat::kQ4_1> {
  static constexpr int kElements = 32;
  using Row = WeightRow<QuantFormat::kQ4_1>;
  __device__ static void decode(const Row& row, int64_t block, int sub, float (&out)[kUnit]) {
    const float d = f16_at(row.at<1>(block));
    const float m = f16_at(row.at<1>(block) + 2);
    nibbles(row.at<0>(block), sub, out);
    for (float& value : out) value = __fadd_rn(__fmul_rn(value, d), m);
  }
};

// Scale and minimum, six bits each, of sub-block j of eight; s: the twelve bytes that hold them.
__device__ inline void scale_and_minimum(const uint8_t* s, int j, int& scale, int& minimum) {
  scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
  minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
}

template <>
struct Decoder<QuantFormat::kQ4_K> {
  static constexpr int kElements = 256;
  using Row = WeightRow<QuantFormat::kQ4_K>;
  __device__ static void decode(const Row& row, int64_t block, int sub, float (&out)[kUnit]) {
    const uint8_t* p = row.at<0>(block);
    const int j = sub / 4;  // of eight sub-blocks of 32
    int scale, minimum;
    scale_and_minimum(p + 4, j, scale, minimum);
    const float step = f16_at(p) * static_cast<float>(scale);
    const float offset = f16_at(p + 2) * static_cast<float>(minimum);
    const uint2 words = *reinterpret_cast<const uint2*>(p + 16 + 32 * (j / 2) + kUnit * (sub % 4));
    for (int i = 0; i < kUnit; ++i) {
      const uint32_t word = i < 4 ? words.x : words.y;
      const uint32_t q = word >> (8 * (i % 4) + (j % 2 == 0 ? 0 : 4)) & 15;
      out[i] = __fsub_rn(__fmul_rn(step, static_cast<float>(q)), offset);
    }
  }
};

template <>
struct Decoder<QuantFormat::kQ6_K> {
  static constexpr int kElements = 256;
  using Row = WeightRow<QuantFormat::kQ6_K>;
  __device__ static void decode(const Row& row, int64_t block, int sub, float (&out)[kUnit]) {
    const int half = sub / 16;
    const int run = sub % 16 / 4;
    const int i0 = kUnit * (sub % 4);
    const uint2 low =
        *reinterpret_cast<const uint2*>(row.at<0>(block) + 64 * half + 32 * (run % 2) + i0);
    const uint2 high = *reinterpret_cast<const uint2*>(row.at<1>(block) + 32 * half + i0);
    const float scale = f16_at(row.at<3>(block)) *
                        static_cast<float>(static_cast<int8_t>(row.at<2>(block)[sub / 2]));
    for (int i = 0; i < kUnit; ++i) {
      const uint32_t l = (i < 4 ? low.x : low.y) >> (8 * (i % 4) + (run < 2 ? 0 : 4)) & 15;
      const uint32_t h = (i < 4 ? high.x : high.y) >> (8 * (i % 4) + 2 * run) & 3;
      out[i] = scale * static_cast<float>(static_cast<int>(l | h << 4) - 32);
    }
  }
};

// Formats read byte by byte, block after block as in the file: kFormat's element(block, e).
template <QuantFormat kFormat, int kBlockElements, float (*element)(const uint8_t*, int)>
struct ByteDecoder {
  static constexpr int kElements = kBlockElements;
  __device__ static void decode(const WeightRow<kFormat>& row,
                                int64_t block,
                                int sub,
                                float (&out)[kUnit]) {
    const uint8_t* bytes = row.at(block);
    for (int i = 0; i < kUnit; ++i) out[i] = element(bytes, kUnit * sub + i);
  }
};
__device__ inline float f32_of(int value) { return static_cast<float>(value); }
__device__ inline int nibble(const uint8_t* q, int i) {
  return i < 16 ? q[i] & 15 : q[i - 16] >> 4;
}
__device__ inline int fifth_bit(const uint8_t* high, int i) {
  return (high[i / 8] >> (i % 8) & 1) << 4;
}
__device__ inline float nl4(int index) {
  constexpr int8_t kValues[16] = {
      -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return f32_of(kValues[index]);
}
__device__ inline float element_q5_0(const uint8_t* b, int e) {
  return f32_of((nibble(b + 6, e) | fifth_bit(b + 2, e)) - 16) * f16_at(b);
}
__device__ inline float element_q5_1(const uint8_t* b, int e) {
  const float q = f32_of(nibble(b + 8, e) | fifth_bit(b + 4, e));
  return __fadd_rn(__fmul_rn(q, f16_at(b)), f16_at(b + 2));
}
__device__ inline float element_iq4_nl(const uint8_t* b, int e) {
  return nl4(nibble(b + 2, e)) * f16_at(b);
}
__device__ inline float element_iq4_xs(const uint8_t* b, int e) {
  const int j = e / 32;
  const int high = b[2 + j / 4] >> (2 * (j % 4)) & 3;
  const int scale = (b[4 + j / 2] >> (4 * (j % 2)) & 15) | high << 4;
  return f16_at(b) * f32_of(scale - 32) * nl4(nibble(b + 8 + 16 * j, e % 32));
}
__device__ inline float element_q2_k(const uint8_t* b, int e) {
  const uint8_t s = b[e / 16];
  const int q = b[16 + 32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32)) & 3;
  return __fsub_rn(__fmul_rn(__fmul_rn(f16_at(b + 80), f32_of(s & 15)), f32_of(q)),
                   __fmul_rn(f16_at(b + 82), f32_of(s >> 4)));
}
__device__ inline float element_q3_k(const uint8_t* b, int e) {
  const uint8_t* s = b + 96;
  const int j = e / 16;
  const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
  const int scale = (low | (s[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32;
  const int q = b[32 + 32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32)) & 3;
  const int missing = (b[e % 32] >> (e / 32) & 1) != 0 ? 0 : 4;
  return f16_at(b + 108) * f32_of(scale) * f32_of(q - missing);
}
__device__ inline float element_q5_k(const uint8_t* b, int e) {
  const int j = e / 32, i = e % 32;
  int scale, minimum;
  scale_and_minimum(b + 4, j, scale, minimum);
  const uint8_t byte = b[48 + 32 * (j / 2) + i];
  const int q = (j % 2 == 0 ? byte & 15 : byte >> 4) | (b[16 + i] >> j & 1) << 4;
  return __fsub_rn(__fmul_rn(__fmul_rn(f16_at(b), f32_of(scale)), f32_of(q)),
                   __fmul_rn(f16_at(b + 2), f32_of(minimum)));
}
template <>
struct Decoder<QuantFormat::kQ5_0> : ByteDecoder<QuantFormat::kQ5_0, 32, element_q5_0> {};
template <>
struct Decoder<QuantFormat::kQ5_1> : ByteDecoder<QuantFormat::kQ5_1, 32, element_q5_1> {};
template <>
struct Decoder<QuantFormat::kQ2_K> : ByteDecoder<QuantFormat::kQ2_K, 256, element_q2_k> {};
template <>
struct Decoder<QuantFormat::kQ3_K> : ByteDecoder<QuantFormat::kQ3_K, 256, element_q3_k> {};
template <>
struct Decoder<QuantFormat::kQ5_K> : ByteDecoder<QuantFormat::kQ5_K, 256, element_q5_k> {};
template <>
struct Decoder<QuantFormat::kIQ4_NL> : ByteDecoder<QuantFormat::kIQ4_NL, 32, element_iq4_nl> {};
template <>
struct Decoder<QuantFormat::kIQ4_XS> : ByteDecoder<QuantFormat::kIQ4_XS, 256, element_iq4_xs> {};

// Elements 8 * unit ... of a row.
template <QuantFormat kFormat>
__device__ inline void decode_unit(const WeightRow<kFormat>& row,
                                   int64_t unit,
                                   float (&out)[kUnit]) {
  using D = Decoder<kFormat>;
  if constexpr (D::kElements == 1) {
    D::decode(row, unit * kUnit, 0, out);
  } else {
    constexpr int kUnits = D::kElements / kUnit;
    D::decode(row, unit / kUnits, static_cast<int>(unit % kUnits), out);
  }
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
