// The decoders against golden values made with an independent implementation, over blocks of a
// stated pseudo-random byte sequence (eight blocks per format).
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/quant/quant_format.h"
#include "tests/support/quantize.h"
#include "tests/support/random.h"

namespace headwater {
namespace {

constexpr int kBlocks = 8;

struct Patch {
  int offset;  // of an f16 in the block; -1: none
  uint16_t bits;
};

struct Golden {
  QuantFormat format;
  Patch d, m;
  double first, second, middle, last, next_block;  // y[0], y[1], y[n/2], y[n-1], y[n+3]
  double sum;                                      // of y
  double weighted;                                 // of ((i mod 997) + 1) * y[i]
};

constexpr uint16_t kD = 0x2C00;    // 0.0625
constexpr uint16_t kMin = 0x2800;  // 0.03125
constexpr Patch kNone{-1, 0};
const Golden kGolden[] = {
    {QuantFormat::kQ8_0,
     {0, kD},
     kNone,
     2.4375,
     7.1875,
     4.375,
     7.4375,
     5.5625,
     -35.6875,
     -12274.625},
    {QuantFormat::kQ4_0,
     {0, kD},
     kNone,
     -0.375,
     -0.125,
     -0.3125,
     0.125,
     -0.3125,
     -5.8125,
     -215.4375},
    {QuantFormat::kQ4_1,
     {0, kD},
     {2, kMin},
     0.90625,
     0.09375,
     0.65625,
     0.09375,
     0.46875,
     122,
     15742.6875},
    {QuantFormat::kQ4_K,
     {0, kD},
     {2, kMin},
     19.3125,
     54.1875,
     43.53125,
     9.5625,
     9.625,
     27077.75,
     13534767.7812},
    {QuantFormat::kQ6_K,
     {208, kD},
     kNone,
     48.8125,
     102.0625,
     84,
     58.4375,
     2.625,
     -7599.8125,
     -3388587.0625},
    {QuantFormat::kQ5_0,
     {0, kD},
     kNone,
     -0.875,
     -0.0625,
     0.4375,
     0.8125,
     0.5625,
     -1.1875,
     -163.8125},
    {QuantFormat::kQ5_1,
     {0, kD},
     {2, kMin},
     1.40625,
     0.09375,
     0.21875,
     1.90625,
     0.65625,
     246.6875,
     31420.125},
    {QuantFormat::kQ2_K,
     {80, kD},
     {82, kMin},
     0.625,
     2.375,
     0.03125,
     0.625,
     0.1875,
     936.75,
     490965.15625},
    {QuantFormat::kQ3_K, {108, kD}, kNone, 1, -0.0, 1.875, -1.375, -0.625, 292.125, 138870},
    {QuantFormat::kQ5_K,
     {0, kD},
     {2, kMin},
     -1.34375,
     -1.34375,
     -0.0625,
     14,
     79.34375,
     60648.9375,
     30820669.2188},
    {QuantFormat::kIQ4_NL,
     {0, kD},
     kNone,
     -5.1875,
     3.3125,
     -6.5,
     -6.5,
     -3.0625,
     -122.9375,
     -14954.75},
    {QuantFormat::kIQ4_XS,
     {0, kD},
     kNone,
     39.8125,
     -10.5625,
     43.125,
     -56.875,
     183.625,
     3383.1875,
     1159319.25},
};

void patch(std::vector<uint8_t>& bytes, size_t block, Patch patch) {
  if (patch.offset < 0) return;
  bytes[block + static_cast<size_t>(patch.offset)] = static_cast<uint8_t>(patch.bits & 0xFF);
  bytes[block + static_cast<size_t>(patch.offset) + 1] = static_cast<uint8_t>(patch.bits >> 8);
}

std::vector<uint8_t> golden_blocks(const Golden& golden) {
  const QuantTraits& traits = quant_traits(golden.format);
  const auto block_bytes = static_cast<size_t>(traits.block_bytes);
  std::vector<uint8_t> bytes(kBlocks * block_bytes);
  uint32_t x = static_cast<uint32_t>(traits.ggml_type) * 1000003u + 12345u;
  for (uint8_t& byte : bytes) {
    x = x * 1664525u + 1013904223u;
    byte = static_cast<uint8_t>(x >> 24);
  }
  for (size_t block = 0; block < bytes.size(); block += block_bytes) {
    patch(bytes, block, golden.d);
    patch(bytes, block, golden.m);
  }
  return bytes;
}

TEST_CASE("quant_format: block formats decode to the golden values", "[kernels][unit]") {
  for (const Golden& golden : kGolden) {
    const QuantTraits& traits = quant_traits(golden.format);
    INFO("format " << traits.name);
    const auto n = static_cast<size_t>(traits.block_elements);
    const std::vector<uint8_t> blocks = golden_blocks(golden);
    std::vector<float> y(kBlocks * n);
    traits.decode(blocks.data(), kBlocks, y.data());
    CHECK(y[0] == golden.first);
    CHECK(y[1] == golden.second);
    CHECK(y[n / 2] == golden.middle);
    CHECK(y[n - 1] == golden.last);
    CHECK(y[n + 3] == golden.next_block);
    double sum = 0;
    double weighted = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      sum += y[i];
      weighted += static_cast<double>(i % 997 + 1) * y[i];
    }
    CHECK(sum == golden.sum);
    CHECK(std::fabs(weighted - golden.weighted) <= 1e-4);
  }
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

// Any scales, also subnormal ones, against the decoders of the gguf package: to the bit.
TEST_CASE("quant_format: block formats decode as the gguf package does", "[kernels][unit]") {
  std::ifstream file(HW_SOURCE_DIR "/tests/data/golden/quant_blocks.json");
  const auto rows = nlohmann::json::parse(file);
  size_t num_block_formats = 0;
  for (const QuantTraits& traits : quant_formats()) {
    if (traits.block_elements == 1) continue;
    INFO("format " << traits.name);
    ++num_block_formats;
    const auto& row = rows.at(std::string(traits.name));
    const std::string blocks = from_hex(row.at("blocks"));
    const std::string expected = from_hex(row.at("values"));
    const auto num_blocks = static_cast<int64_t>(blocks.size()) / traits.block_bytes;
    std::vector<float> values(static_cast<size_t>(num_blocks * traits.block_elements));
    REQUIRE(values.size() == 512);
    REQUIRE(expected.size() == values.size() * sizeof(float));
    traits.decode(blocks.data(), num_blocks, values.data());
    CHECK(std::memcmp(values.data(), expected.data(), expected.size()) == 0);
  }
  CHECK(rows.size() == num_block_formats);
}

TEST_CASE("quant_format: decoding does not depend on alignment", "[kernels][unit]") {
  for (const Golden& golden : kGolden) {
    const QuantTraits& traits = quant_traits(golden.format);
    INFO("format " << traits.name);
    const std::vector<uint8_t> blocks = golden_blocks(golden);
    std::vector<uint8_t> shifted(blocks.size() + 1);
    std::copy(blocks.begin(), blocks.end(), shifted.begin() + 1);
    std::vector<float> aligned(static_cast<size_t>(kBlocks * traits.block_elements));
    std::vector<float> odd(aligned.size());
    traits.decode(blocks.data(), kBlocks, aligned.data());
    traits.decode(shifted.data() + 1, kBlocks, odd.data());
    CHECK(aligned == odd);
  }
}

TEST_CASE("quant_format: the table names every format once", "[kernels][unit]") {
  std::set<std::string_view> names;
  for (const QuantTraits& traits : quant_formats()) {
    INFO("format " << traits.name);
    CHECK(names.insert(traits.name).second);
    CHECK(&quant_traits(traits.format) == &traits);
    CHECK(find_ggml_type(traits.ggml_type) == &traits);
    CHECK(row_bytes(traits.format, 3 * traits.block_elements) == 3 * traits.block_bytes);
  }
  CHECK(names.size() == 15);
  CHECK(find_ggml_type(9) == nullptr);   // Q8_1: activations
  CHECK(find_ggml_type(16) == nullptr);  // IQ2_XXS
  CHECK(find_ggml_type(-1) == nullptr);
}

TEST_CASE("quant_format: F32, F16 and BF16 decode exactly", "[kernels][unit]") {
  const float f32[] = {0.1f, -3.5f};
  float out[3];
  quant_traits(QuantFormat::kF32).decode(f32, 2, out);
  CHECK(out[0] == 0.1f);
  CHECK(out[1] == -3.5f);
  const uint16_t f16[] = {0x3C00, 0x0001, 0xFBFF};  // 1, smallest subnormal, -65504
  quant_traits(QuantFormat::kF16).decode(f16, 3, out);
  CHECK(out[0] == 1.0f);
  CHECK(out[1] == 0x1p-24f);
  CHECK(out[2] == -65504.0f);
  const uint16_t bf16[] = {0x3F80, 0xC049, 0x7F80};  // 1, -3.140625, infinity
  quant_traits(QuantFormat::kBF16).decode(bf16, 3, out);
  CHECK(out[0] == 1.0f);
  CHECK(out[1] == -3.140625f);
  CHECK(out[2] == std::numeric_limits<float>::infinity());
}

// How far a reference quantiser may be off, in units of the block's range.
struct RoundTrip {
  QuantFormat format;
  double tolerance;
};
const RoundTrip kRoundTrips[] = {
    {QuantFormat::kF32, 0},
    {QuantFormat::kF16, 0x1p-11},
    {QuantFormat::kBF16, 0x1p-8},
    {QuantFormat::kQ8_0, 0.5 / 127 + 0x1p-10},
    {QuantFormat::kQ4_0, 1.0 / 8 + 0x1p-10},
    {QuantFormat::kQ4_1, 1.0 / 15 + 0x1p-9},
    {QuantFormat::kQ5_0, 1.0 / 16 + 0x1p-10},
    {QuantFormat::kQ5_1, 1.0 / 31 + 0x1p-9},
    {QuantFormat::kIQ4_NL, 14.0 / 127 + 0x1p-10},  // the codes end at -127 and 113
};

TEST_CASE("quant_format: quantised values decode close to themselves", "[kernels][unit]") {
  for (const RoundTrip& row : kRoundTrips) {
    const QuantTraits& traits = quant_traits(row.format);
    INFO("format " << traits.name);
    testing::Random random(7);
    const std::vector<float> values = random.values(32 * 64, 0.5f);
    const std::string blocks = testing::quantize(row.format, values);
    std::vector<float> out(values.size());
    traits.decode(
        blocks.data(), static_cast<int64_t>(values.size()) / traits.block_elements, out.data());
    double worst = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      worst = std::max(worst, static_cast<double>(std::fabs(out[i] - values[i])));
    }
    CHECK(worst <= row.tolerance * 0.5 * std::sqrt(3.0));
    CHECK((worst > 0) == (row.tolerance > 0));
  }
}

}  // namespace
}  // namespace headwater
