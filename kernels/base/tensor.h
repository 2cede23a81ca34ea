// Matrix: a view of rows of activations; never owns. Buffer: the owner of device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/base/dtype.h"

namespace headwater {

struct Matrix {
  void* data = nullptr;  // device memory of the Ops that uses it
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next, >= cols

  float* f32_row(int64_t row) const { return static_cast<float*>(data) + row * stride; }
  Matrix columns(int64_t begin, int64_t count) const {
    return {static_cast<std::byte*>(data) + begin * dtype_bytes(dtype), dtype, rows, count, stride};
  }
  Matrix row_range(int64_t begin, int64_t count) const {
    return {static_cast<std::byte*>(data) + begin * stride * dtype_bytes(dtype),
            dtype,
            count,
            cols,
            stride};
  }
  Matrix first_rows(int64_t count) const { return {data, dtype, count, cols, stride}; }
};

// Move-only owner of device memory; the deleter knows the device.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::byte* data, int64_t bytes, std::function<void(std::byte*)> deleter)
      : data_(data, std::move(deleter)), bytes_(bytes) {}
  std::byte* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  std::unique_ptr<std::byte, std::function<void(std::byte*)>> data_;
  int64_t bytes_ = 0;
};

}  // namespace headwater
