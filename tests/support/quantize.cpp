#include "tests/support/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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
    case QuantFormat::kQ4_K:
    case QuantFormat::kQ6_K:
      break;
  }
  HW_CHECK(false, "no quantiser for", quant_traits(format).name);
  return {};
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
  HW_CHECK(traits.block_elements == 256 && num_elements % 256 == 0, "elements", num_elements);
  Random random(seed);
  std::string bytes;
  for (int64_t i = 0; i < num_elements / 256; ++i) {
    std::string block = random_bytes(random, traits.block_bytes);
    if (format == QuantFormat::kQ4_K) {
      // Scales and minima are 6 bits, mean 31.5, codes 0..15, mean 7.5: a minimum's unit of 7.5
      // scales centres the values.
      const float d = deviation / 260;
      block.replace(0, 4, le_bytes(f32_to_f16(d)) + le_bytes(f32_to_f16(7.5f * d)));
    } else {
      // Scales are signed bytes and codes -32..31: the product has deviation 74 * 18.5.
      block.replace(208, 2, le_bytes(f32_to_f16(deviation / 1370)));
    }
    bytes += block;
  }
  return bytes;
}

}  // namespace headwater::testing
