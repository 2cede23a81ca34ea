// Random weights as a file stores them, and one product with them on a device.
#pragma once

#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels/device_memory.h"
#include "tests/support/quantize.h"
#include "tests/support/random.h"

namespace headwater::testing {

inline constexpr float kSentinel = -12345.0f;

struct Stored {
  std::string bytes;
  WeightView view;

  Stored(QuantFormat format, int64_t rows, int64_t cols, uint64_t seed) {
    Random random(seed);
    bytes = quant_traits(format).block_elements == 256
                ? random_k_blocks(format, rows * cols, 0.05f, seed)
                : quantize(format, random.values(rows * cols, 0.05f));
    view = {format, rows, cols, bytes.data()};
  }
};

// out (+)= x * W^T of m rows, in rows that lie apart: what is between them stays as it was.
inline std::vector<float> run(Ops& ops,
                              const std::vector<WeightView>& parts,
                              const std::vector<float>& x,
                              int64_t m,
                              LinearMode mode = LinearMode::kOverwrite) {
  const std::unique_ptr<Weight> weight = ops.load_weight(parts);
  const int64_t stride = weight->rows + 3;
  std::vector<float> out(static_cast<size_t>(m * stride), kSentinel);
  if (mode == LinearMode::kAdd)
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < weight->rows; ++c) out[r * stride + c] = static_cast<float>(c % 7);
  DeviceMemory memory(ops);
  const Matrix device_out = memory.rows(out, m, weight->rows, stride);
  ops.linear(*weight, memory.rows(x, m), device_out, mode);
  out = memory.get(device_out);
  std::vector<float> dense;
  for (int64_t r = 0; r < m; ++r) {
    dense.insert(dense.end(), &out[r * stride], &out[r * stride] + weight->rows);
    for (int64_t c = weight->rows; c < stride; ++c) REQUIRE(out[r * stride + c] == kSentinel);
  }
  return dense;
}

inline bool same_bits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

}  // namespace headwater::testing
