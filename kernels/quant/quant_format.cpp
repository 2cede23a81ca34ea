#include "kernels/quant/quant_format.h"

#include <array>
#include <cstddef>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace headwater {
namespace {

// Blocks lie unaligned in the file: every multi-byte field is read by memcpy.
template <typename T>
T load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

float load_f16(const uint8_t* bytes) { return f16_to_f32(load<uint16_t>(bytes)); }

// Element i of 32 nibbles: low ones are elements 0..15, high ones 16..31.
int nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }
int q5(const uint8_t* q, uint32_t high, int i) {
  return nibble(q, i) | static_cast<int>(high >> i & 1) << 4;
}
float nl4(const uint8_t* q, int i) { return static_cast<float>(kNl4Values[nibble(q, i)]); }

float low_nibble(uint8_t byte) { return static_cast<float>(byte & 15); }
float high_nibble(uint8_t byte) { return static_cast<float>(byte >> 4); }

// A scalar type: decode_element(bytes) gives one value.
template <int kBytes, float (*decode_element)(const uint8_t*)>
void decode_scalars(const void* blocks, int64_t num_blocks, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(blocks);
  for (int64_t i = 0; i < num_blocks; ++i) out[i] = decode_element(bytes + i * kBytes);
}

float element_bf16(const uint8_t* bytes) { return bf16_to_f32(load<uint16_t>(bytes)); }

// A block type: decode_block(block, out) gives kElements values.
template <int kElements, int kBytes, void (*decode_block)(const uint8_t*, float*)>
void decode_blocks(const void* blocks, int64_t num_blocks, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(blocks);
  for (int64_t i = 0; i < num_blocks; ++i) decode_block(bytes + i * kBytes, out + i * kElements);
}

// f16 d, i8 q[32]
void block_q8_0(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
}

// f16 d, u4 q[32]: low nibbles are elements 0..15, high nibbles 16..31
void block_q4_0(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = (low_nibble(block[2 + i]) - 8.0f) * d;
    out[i + 16] = (high_nibble(block[2 + i]) - 8.0f) * d;
  }
}

// f16 d, f16 m, u4 q[32]: nibbles as in Q4_0
void block_q4_1(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float m = load_f16(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = low_nibble(block[4 + i]) * d + m;
    out[i + 16] = high_nibble(block[4 + i]) * d + m;
  }
}

// f16 d, u32 h (fifth bit of element i: bit i), u4 q[32]: nibbles as in Q4_0
void block_q5_0(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const auto high = load<uint32_t>(block + 2);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(q5(block + 6, high, i) - 16) * d;
}

// f16 d, f16 m, u32 h, u4 q[32]: bits as in Q5_0
void block_q5_1(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float m = load_f16(block + 2);
  const auto high = load<uint32_t>(block + 4);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(q5(block + 8, high, i)) * d + m;
}

// f16 d, u4 q[32]: nibbles as in Q4_0, each an index of kNl4Values
void block_iq4_nl(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 32; ++i) out[i] = nl4(block + 2, i) * d;
}

// f16 d, u16 high (two bits per sub-block), u8 low[4] (four bits per sub-block), u4 q[256]: eight
// sub-blocks of 32 with nibbles as in Q4_0 and a scale of six bits, 32 too large.
void block_iq4_xs(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const auto high = load<uint16_t>(block + 2);
  for (int j = 0; j < 8; ++j) {
    const int scale = (block[4 + j / 2] >> (4 * (j % 2)) & 15) | (high >> (2 * j) & 3) << 4;
    const float step = d * static_cast<float>(scale - 32);
    for (int i = 0; i < 32; ++i) out[32 * j + i] = step * nl4(block + 8 + 16 * j, i);
  }
}

// u8 s[16] (low nibble a scale, high nibble a minimum), u2 q[256], f16 d, f16 dmin. A half of 128
// elements has four runs of 32: run k takes bits 2k, 2k + 1 of the half's 32 bytes of q.
void block_q2_k(const uint8_t* block, float* out) {
  const float d = load_f16(block + 80);
  const float dmin = load_f16(block + 82);
  for (int e = 0; e < 256; ++e) {
    const uint8_t s = block[e / 16];
    const int q = block[16 + 32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32)) & 3;
    out[e] = d * low_nibble(s) * static_cast<float>(q) - dmin * high_nibble(s);
  }
}

// u1 h[256], u2 q[256], u8 s[12] (sixteen 6-bit scales, 32 too large), f16 d. The two bits lie as
// in Q2_K; the third of run k of half f is bit 4f + k of h byte i, and without it 4 is taken away.
void block_q3_k(const uint8_t* block, float* out) {
  const float d = load_f16(block + 108);
  const uint8_t* s = block + 96;
  for (int e = 0; e < 256; ++e) {
    const int j = e / 16;
    const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    const int scale = (low | (s[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32;
    const int q = block[32 + 32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32)) & 3;
    const int missing = (block[e % 32] >> (e / 32) & 1) != 0 ? 0 : 4;
    out[e] = d * static_cast<float>(scale) * static_cast<float>(q - missing);
  }
}

// Scale and minimum j of the eight that Q4_K and Q5_K pack in twelve bytes, six bits each.
struct ScaleMin {
  int scale, minimum;
};
ScaleMin scale_min(const uint8_t* s, int j) {
  if (j < 4) return {s[j] & 63, s[j + 4] & 63};
  return {(s[j + 4] & 15) | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4};
}

// f16 d, f16 dmin, u8 s[12] (eight 6-bit scales and eight 6-bit minima), u4 q[256].
// Sub-block j of 32 elements takes the low (j even) or high nibbles of q bytes 32*(j/2)...
void block_q4_k(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float dmin = load_f16(block + 2);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = scale_min(block + 4, j);
    const float step = d * static_cast<float>(s.scale);
    const float offset = dmin * static_cast<float>(s.minimum);
    const uint8_t* q = block + 16 + 32 * (j / 2);
    for (int i = 0; i < 32; ++i) {
      out[32 * j + i] = step * (j % 2 == 0 ? low_nibble(q[i]) : high_nibble(q[i])) - offset;
    }
  }
}

// f16 d, f16 dmin, u8 s[12], u1 h[256], u4 q[256]: as Q4_K; the fifth bit of element i of sub-block
// j is bit j of h byte i.
void block_q5_k(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float dmin = load_f16(block + 2);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = scale_min(block + 4, j);
    const float step = d * static_cast<float>(s.scale);
    const float offset = dmin * static_cast<float>(s.minimum);
    const uint8_t* q = block + 48 + 32 * (j / 2);
    for (int i = 0; i < 32; ++i) {
      const int low = j % 2 == 0 ? q[i] & 15 : q[i] >> 4;
      const int high = block[16 + i] >> j & 1;
      out[32 * j + i] = step * static_cast<float>(low | high << 4) - offset;
    }
  }
}

// u4 ql[256], u2 qh[256], i8 scales[16], f16 d. A half of 128 elements has four runs of 32: run k
// takes the low (k < 2) or high nibbles of ql and bits 2k, 2k+1 of qh.
void block_q6_k(const uint8_t* block, float* out) {
  const float d = load_f16(block + 208);
  for (int e = 0; e < 256; ++e) {
    const int half = e / 128;
    const int run = e % 128 / 32;
    const int i = e % 32;
    const uint8_t low_byte = block[64 * half + 32 * (run % 2) + i];
    const int low = run < 2 ? low_byte & 15 : low_byte >> 4;
    const int high = block[128 + 32 * half + i] >> (2 * run) & 3;
    const float scale = d * static_cast<float>(static_cast<int8_t>(block[192 + e / 16]));
    out[e] = scale * static_cast<float>((low | high << 4) - 32);
  }
}

// In the order of QuantFormat.
constexpr std::array<QuantTraits, 15> kFormats = {{
    {QuantFormat::kF32, "F32", 0, 1, 4, decode_scalars<4, load<float>>},
    {QuantFormat::kF16, "F16", 1, 1, 2, decode_scalars<2, load_f16>},
    {QuantFormat::kBF16, "BF16", 30, 1, 2, decode_scalars<2, element_bf16>},
    {QuantFormat::kQ8_0, "Q8_0", 8, 32, 34, decode_blocks<32, 34, block_q8_0>},
    {QuantFormat::kQ4_0, "Q4_0", 2, 32, 18, decode_blocks<32, 18, block_q4_0>},
    {QuantFormat::kQ4_1, "Q4_1", 3, 32, 20, decode_blocks<32, 20, block_q4_1>},
    {QuantFormat::kQ4_K, "Q4_K", 12, 256, 144, decode_blocks<256, 144, block_q4_k>},
    {QuantFormat::kQ6_K, "Q6_K", 14, 256, 210, decode_blocks<256, 210, block_q6_k>},
    {QuantFormat::kQ5_0, "Q5_0", 6, 32, 22, decode_blocks<32, 22, block_q5_0>},
    {QuantFormat::kQ5_1, "Q5_1", 7, 32, 24, decode_blocks<32, 24, block_q5_1>},
    {QuantFormat::kQ2_K, "Q2_K", 10, 256, 84, decode_blocks<256, 84, block_q2_k>},
    {QuantFormat::kQ3_K, "Q3_K", 11, 256, 110, decode_blocks<256, 110, block_q3_k>},
    {QuantFormat::kQ5_K, "Q5_K", 13, 256, 176, decode_blocks<256, 176, block_q5_k>},
    {QuantFormat::kIQ4_NL, "IQ4_NL", 20, 32, 18, decode_blocks<32, 18, block_iq4_nl>},
    {QuantFormat::kIQ4_XS, "IQ4_XS", 23, 256, 136, decode_blocks<256, 136, block_iq4_xs>},
}};

constexpr bool in_enum_order() {
  for (size_t i = 0; i < kFormats.size(); ++i) {
    if (static_cast<size_t>(kFormats[i].format) != i) return false;
  }
  return true;
}
static_assert(in_enum_order());

}  // namespace

std::span<const QuantTraits> quant_formats() { return kFormats; }

const QuantTraits& quant_traits(QuantFormat format) {
  const auto idx = static_cast<size_t>(format);
  HW_CHECK(idx < kFormats.size(), "unknown weight format", idx);
  return kFormats[idx];
}

const QuantTraits* find_ggml_type(int32_t ggml_type) {
  for (const QuantTraits& traits : kFormats) {
    if (traits.ggml_type == ggml_type) return &traits;
  }
  return nullptr;
}

}  // namespace headwater
