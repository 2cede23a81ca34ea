// cuBLAS, opened at run time: it is half a gigabyte, which only a process with a GPU should load.
// Engine thread.
#pragma once

#include <memory>
#include <string>

#include "kernels/base/cuda.cuh"
#include "kernels/base/tensor.h"

namespace headwater::cuda {

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

 private:
  struct Api;
  std::unique_ptr<Api> api_;
  Buffer workspace_;
};

}  // namespace headwater::cuda
