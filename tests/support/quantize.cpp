#include "tests/support/quantize.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/random.h"

namespace headwater::testing {
namespace {

constexpr int kBlock = 32;

float largest(std::span<const float> values) {
  return *std::max_element(
      values.begin(), values.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}

float inverse(float d) { return d == 0 ? 0 : 1 / d; }

// Element i in the low nibble, element i + 16 in the high one of byte i.
std::string pack_nibbles(const uint8_t (&codes)[kBlock]) {
  std::string bytes;
  for (int i = 0; i < kBlock / 2; ++i) {
    bytes += static_cast<char>(codes[i] | codes[i + kBlock / 2] << 4);
  }
  return bytes;
}

std::string block_q8_0(std::span<const float> values) {
  const float d = std::fabs(largest(values)) / 127;
  std::string bytes = le_bytes(f32_to_f16(d));
  for (const float value : values) {
    bytes += static_cast<char>(static_cast<int8_t>(std::round(value * inverse(d))));
  }
  return bytes;
}

std::string block_q4_0(std::span<const float> values) {
  const float d = largest(values) / -8;
  uint8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    codes[i] = static_cast<uint8_t>(
        std::min(15, static_cast<int>(values[static_cast<size_t>(i)] * inverse(d) + 8.5f)));
  }
  return le_bytes(f32_to_f16(d)) + pack_nibbles(codes);
}

std::string block_q4_1(std::span<const float> values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const float d = (*high - *low) / 15;
  uint8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    codes[i] = static_cast<uint8_t>(std::min(
        15, static_cast<int>((values[static_cast<size_t>(i)] - *low) * inverse(d) + 0.5f)));
  }
  return le_bytes(f32_to_f16(d)) + le_bytes(f32_to_f16(*low)) + pack_nibbles(codes);
}

// The fifth bits of the codes as one word, then the other four of each.
std::string pack_5_bits(const uint8_t (&codes)[kBlock]) {
  uint32_t high = 0;
  uint8_t low[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    high |= static_cast<uint32_t>(codes[i] >> 4) << i;
    low[i] = codes[i] & 15;
  }
  return le_bytes(high) + pack_nibbles(low);
}

std::string block_q5_0(std::span<const float> values) {
  const float d = largest(values) / -16;
  uint8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    codes[i] = static_cast<uint8_t>(
        std::min(31, static_cast<int>(values[static_cast<size_t>(i)] * inverse(d) + 16.5f)));
  }
  return le_bytes(f32_to_f16(d)) + pack_5_bits(codes);
}

std::string block_q5_1(std::span<const float> values) {
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  const float d = (*high - *low) / 31;
  uint8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    codes[i] = static_cast<uint8_t>(std::min(
        31, static_cast<int>((values[static_cast<size_t>(i)] - *low) * inverse(d) + 0.5f)));
  }
  return le_bytes(f32_to_f16(d)) + le_bytes(f32_to_f16(*low)) + pack_5_bits(codes);
}

std::string block_iq4_nl(std::span<const float> values) {
  const float d = largest(values) / kNl4Values[0];
  uint8_t codes[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const float value = values[static_cast<size_t>(i)] * inverse(d);
    const int8_t* nearest =
        std::min_element(std::begin(kNl4Values), std::end(kNl4Values), [=](int8_t a, int8_t b) {
          return std::fabs(static_cast<float>(a) - value) <
                 std::fabs(static_cast<float>(b) - value);
        });
    codes[i] = static_cast<uint8_t>(nearest - std::begin(kNl4Values));
  }
  return le_bytes(f32_to_f16(d)) + pack_nibbles(codes);
}

std::string quantize_block(QuantFormat format, std::span<const float> values) {
  switch (format) {
    case QuantFormat::kF32:
      return le_bytes(values[0]);
    case QuantFormat::kF16:
      return le_bytes(f32_to_f16(values[0]));
    case QuantFormat::kBF16:
      return le_bytes(f32_to_bf16(values[0]));
    case QuantFormat::kQ8_0:
      return block_q8_0(values);
    case QuantFormat::kQ4_0:
      return block_q4_0(values);
    case QuantFormat::kQ4_1:
      return block_q4_1(values);
    case QuantFormat::kQ5_0:
      return block_q5_0(values);
    case QuantFormat::kQ5_1:
      return block_q5_1(values);
    case QuantFormat::kIQ4_NL:
      return block_iq4_nl(values);
    default:
      break;
  }
  HW_CHECK(false, "no quantiser for", quant_traits(format).name);
  return {};
}

// Where d lies in a block (dmin, if any, follows it), the deviation of what random bytes decode to
// with d = 1, and the dmin that centres it: the mean code.
struct RandomBlocks {
  QuantFormat format;
  size_t d_at;
  float deviation;
  float min_unit;  // 0: no minima
};
constexpr RandomBlocks kRandomBlocks[] = {
    {QuantFormat::kQ2_K, 80, 13.9f, 1.5f},
    {QuantFormat::kQ3_K, 108, 43.3f, 0},
    {QuantFormat::kQ4_K, 0, 260, 7.5f},
    {QuantFormat::kQ5_K, 0, 527, 15.5f},
    {QuantFormat::kQ6_K, 208, 1370, 0},
    {QuantFormat::kIQ4_XS, 0, 1246, 0},
};

const RandomBlocks& random_blocks(QuantFormat format) {
  const auto* row = std::find_if(
      std::begin(kRandomBlocks), std::end(kRandomBlocks), [=](const RandomBlocks& blocks) {
        return blocks.format == format;
      });
  HW_CHECK(row != std::end(kRandomBlocks), "no random blocks of", quant_traits(format).name);
  return *row;
}

std::string random_bytes(Random& random, int64_t count) {
  std::string bytes;
  for (int64_t i = 0; i < count; ++i) bytes += static_cast<char>(random.next() >> 56);
  return bytes;
}

}  // namespace

std::string quantize(QuantFormat format, std::span<const float> values) {
  const QuantTraits& traits = quant_traits(format);
  const auto block = static_cast<size_t>(traits.block_elements);
  HW_CHECK(values.size() % block == 0, "elements", values.size());
  std::string bytes;
  bytes.reserve(values.size() / block * static_cast<size_t>(traits.block_bytes));
  for (size_t i = 0; i < values.size(); i += block) {
    bytes += quantize_block(format, values.subspan(i, block));
  }
  return bytes;
}

std::string random_k_blocks(QuantFormat format,
                            int64_t num_elements,
                            float deviation,
                            uint64_t seed) {
  const QuantTraits& traits = quant_traits(format);
  const RandomBlocks& row = random_blocks(format);
  HW_CHECK(num_elements % traits.block_elements == 0, "elements", num_elements);
  const float d = deviation / row.deviation;
  Random random(seed);
  std::string bytes;
  for (int64_t i = 0; i < num_elements / traits.block_elements; ++i) {
    std::string block = random_bytes(random, traits.block_bytes);
    block.replace(row.d_at, 2, le_bytes(f32_to_f16(d)));
    if (row.min_unit > 0) block.replace(row.d_at + 2, 2, le_bytes(f32_to_f16(row.min_unit * d)));
    bytes += block;
  }
  return bytes;
}

}  // namespace headwater::testing
