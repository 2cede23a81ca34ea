// Weight formats: one row per format. Source of the layouts: the GGUF block formats.
// A new format is one row here, one decode function in quant_format.cpp and its kernels.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace headwater {

enum class QuantFormat : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ4_K,
  kQ6_K,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ5_K,
  kIQ4_NL,
  kIQ4_XS
};

struct QuantTraits {
  QuantFormat format;
  std::string_view name;   // as llama.cpp spells it: "F16", "Q4_K"
  int32_t ggml_type;       // type id in a GGUF tensor header
  int32_t block_elements;  // elements of one block; a row must be a multiple
  int32_t block_bytes;     // bytes of one block, as stored
  // Decodes num_blocks blocks to fp32, exactly as the format defines them.
  void (*decode)(const void* blocks, int64_t num_blocks, float* out);
};

// What the four bits of IQ4_NL and IQ4_XS stand for.
inline constexpr int8_t kNl4Values[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

std::span<const QuantTraits> quant_formats();
const QuantTraits& quant_traits(QuantFormat format);
const QuantTraits* find_ggml_type(int32_t ggml_type);  // nullptr: not supported

inline int64_t row_bytes(QuantFormat format, int64_t cols) {
  const QuantTraits& traits = quant_traits(format);
  return cols / traits.block_elements * traits.block_bytes;
}

// A weight matrix as it lies in the file: rows of whole blocks. A view: the mapped file owns it.
struct WeightView {
  QuantFormat format = QuantFormat::kF32;
  int64_t rows = 0;  // outputs
  int64_t cols = 0;  // inputs
  const void* data = nullptr;

  int64_t bytes() const { return rows * row_bytes(format, cols); }
};

}  // namespace headwater
