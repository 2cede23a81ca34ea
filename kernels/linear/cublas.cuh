// cuBLAS, opened at run time: it is half a gigabyte, which only a process with a GPU should load.
// Engine thread.
#pragma once

#include <memory>
#include <string>

#include "kernels/base/cuda.cuh"
#include "kernels/base/tensor.h"

namespace headwater::cuda {

// One factor of each product of a batch, f32: element (i, j) = data[i * stride + j], or of the
// transpose data[j * stride + i].
struct Factor {
  enum class Layout : uint8_t { kRows, kTransposed };
  const float* data = nullptr;
  int64_t stride = 0;
  Layout layout = Layout::kRows;
  int64_t batch_stride = 0;  // elements from one product's factor to the next one's
};
enum class Arithmetic : uint8_t { kFp32, kTf32 };  // factors as they are, or rounded to TF32

class Cublas {
 public:
  // Throws ConfigError if the library cannot be opened, CudaError if it cannot start.
  explicit Cublas(const Stream& stream);
  ~Cublas();

  // out[m, n] (+)= x[m, k] * w[n, k]^T, all f32 and row-major, summed in fp32; the factors are
  // rounded to TF32 (11 significant bits). Strides count elements.
  void multiply(Matrix x, const float* w, int64_t w_stride, Matrix out, bool add) const;
  // The same of factors that are f16; out may be: beyond its range it is infinite.
  void multiply_half(Matrix x, const void* w, int64_t w_stride, Matrix out, bool add) const;
  // out (+)= a * b, of as many products as num_products; a: [out.rows, depth], b: [depth,
  // out.cols].
  void multiply_batch(const Factor& a,
                      const Factor& b,
                      int64_t depth,
                      Matrix out,
                      int64_t out_batch_stride,
                      int64_t num_products,
                      bool add,
                      Arithmetic arithmetic) const;

 private:
  struct Api;
  std::unique_ptr<Api> api_;
  Buffer workspace_;
};

}  // namespace headwater::cuda
