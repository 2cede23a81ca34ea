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
  // All of the rows, with what lies between them.
  std::vector<float> get(Matrix matrix) {
    std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.stride));
    ops_.download(values.data(), matrix.data, static_cast<int64_t>(values.size() * sizeof(float)));
    ops_.synchronize();
    return values;
  }

 private:
  Ops& ops_;  // not owned
  Buffer buffer_;
  int64_t used_ = 0;
};

}  // namespace headwater::testing
