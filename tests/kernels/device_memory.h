// What the op tests share over devices: host vectors as device memory and back.
#pragma once

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "tests/support/skip.h"

namespace headwater::testing {

// CudaOps, or nothing where this build or machine has none: the test case then says so and returns.
inline std::unique_ptr<Ops> cuda_or_skip(const CudaOptions& options = {}) {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) {
    skip(obstacle);
    return nullptr;
  }
  return make_cuda_ops(options);
}

// Values that f16 holds exactly, near the given ones.
inline std::vector<float> rounded_to_f16(std::vector<float> values) {
  for (float& value : values) value = f16_to_f32(f32_to_f16(value));
  return values;
}

// One allocation handed out piece by piece, so that tests of many small steps stay quick.
class DeviceMemory {
 public:
  explicit DeviceMemory(Ops& ops, int64_t bytes = int64_t{32} << 20)
      : ops_(ops), buffer_(ops.allocate(bytes)) {}

  void reset() { used_ = 0; }

  template <typename T>
  T* put(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    REQUIRE(used_ + bytes <= buffer_.bytes());
    auto* at = reinterpret_cast<T*>(buffer_.data() + used_);
    if (bytes > 0) ops_.upload(at, values.data(), bytes);
    used_ += (bytes + 63) / 64 * 64;
    return at;
  }
  Matrix rows(const std::vector<float>& values, int64_t num_rows, int64_t cols, int64_t stride) {
    return {put(values), DType::kF32, num_rows, cols, stride};
  }
  Matrix rows(const std::vector<float>& values, int64_t num_rows) {
    const int64_t cols = static_cast<int64_t>(values.size()) / num_rows;
    return rows(values, num_rows, cols, cols);
  }
  // One row behind another, rounded to `dtype`.
  Matrix rows_as(DType dtype, const std::vector<float>& values, int64_t num_rows) {
    if (dtype == DType::kF32) return rows(values, num_rows);
    const int64_t cols = static_cast<int64_t>(values.size()) / num_rows;
    return {put(halves(values)), dtype, num_rows, cols, cols};
  }
  // All of the rows, with what lies between them.
  std::vector<float> get(Matrix matrix) {
    std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.stride));
    std::vector<uint16_t> halves(matrix.dtype == DType::kF16 ? values.size() : 0);
    void* to = halves.empty() ? static_cast<void*>(values.data()) : halves.data();
    ops_.download(to, matrix.data, matrix.rows * matrix.stride * dtype_bytes(matrix.dtype));
    ops_.synchronize();
    for (size_t i = 0; i < halves.size(); ++i) values[i] = f16_to_f32(halves[i]);
    return values;
  }

 private:
  static std::vector<uint16_t> halves(const std::vector<float>& values) {
    std::vector<uint16_t> result;
    for (const float value : values) result.push_back(f32_to_f16(value));
    return result;
  }

  Ops& ops_;  // not owned
  Buffer buffer_;
  int64_t used_ = 0;
};

}  // namespace headwater::testing
