// gemm: fp32 matrix product on the CPU for the reverse passes of engine/calibrate; not part of the
// serving path, whose products run on weights as stored (kernels/linear).
//
// Any thread, with a scratch of its own. Each element is one running sum per block of kGemmDepth
// inputs, first to last, and blocks are added in order: the shapes around it do not change its
// bits.
#pragma once

#include <cstdint>
#include <vector>

namespace headwater::gradient {

constexpr int64_t kGemmDepth = 256;

// Element (i, j) = data[i * row_stride + j * col_stride]: a matrix or its transpose.
struct Strided {
  const float* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
};

inline Strided rows_of(const float* data, int64_t stride) { return {data, stride, 1}; }
inline Strided transposed(const float* data, int64_t stride) { return {data, 1, stride}; }

// Packed panels of both sides; grows, never shrinks.
struct GemmScratch {
  std::vector<float> a, b;
};

// c (+)= a * b.  a: [m, k], b: [k, n], c: [m, n] with rows c_stride apart
void gemm(int64_t m,
          int64_t n,
          int64_t k,
          const Strided& a,
          const Strided& b,
          float* c,
          int64_t c_stride,
          bool add,
          GemmScratch& scratch);

}  // namespace headwater::gradient
