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

// f16 d, f16 dmin, u8 s[12] (eight 6-bit scales and eight 6-bit minima), u4 q[256].
// Sub-block j of 32 elements takes the low (j even) or high nibbles of q bytes 32*(j/2)...
void block_q4_k(const uint8_t* block, float* out) {
  const float d = load_f16(block);
  const float dmin = load_f16(block + 2);
  const uint8_t* s = block + 4;
  for (int j = 0; j < 8; ++j) {
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    const int minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    const float step = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(minimum);
    const uint8_t* q = block + 16 + 32 * (j / 2);
    for (int i = 0; i < 32; ++i) {
      out[32 * j + i] = step * (j % 2 == 0 ? low_nibble(q[i]) : high_nibble(q[i])) - offset;
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
constexpr std::array<QuantTraits, 8> kFormats = {{
    {QuantFormat::kF32, "F32", 0, 1, 4, decode_scalars<4, load<float>>},
    {QuantFormat::kF16, "F16", 1, 1, 2, decode_scalars<2, load_f16>},
    {QuantFormat::kBF16, "BF16", 30, 1, 2, decode_scalars<2, element_bf16>},
    {QuantFormat::kQ8_0, "Q8_0", 8, 32, 34, decode_blocks<32, 34, block_q8_0>},
    {QuantFormat::kQ4_0, "Q4_0", 2, 32, 18, decode_blocks<32, 18, block_q4_0>},
    {QuantFormat::kQ4_1, "Q4_1", 3, 32, 20, decode_blocks<32, 20, block_q4_1>},
    {QuantFormat::kQ4_K, "Q4_K", 12, 256, 144, decode_blocks<256, 144, block_q4_k>},
    {QuantFormat::kQ6_K, "Q6_K", 14, 256, 210, decode_blocks<256, 210, block_q6_k>},
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
