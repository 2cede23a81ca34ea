// What the norm's and the gates' kernels share with products that do the same on the way, to the
// same bits (few_rows_cuda.cu). Device code.
#pragma once

#include <cstdint>

#include "kernels/base/elements_cuda.cuh"
#include "kernels/ops.h"

namespace headwater::cuda {

constexpr int kNormThreads = 512;  // of a block that normalises a row

// 1 / sqrt(mean(x^2) + eps), by a block of kNormThreads: their sums, each over its own columns in
// order, then a tree: one order for any batch. kVectors: a row of whole fours.
template <bool kVectors, typename T>
__device__ inline float rms_scale(const T* x, int64_t cols, float eps) {
  __shared__ float partial[kNormThreads / 32];
  float sum = 0;
  if constexpr (kVectors) {
    for (int64_t c = 4 * threadIdx.x; c < cols; c += 4 * kNormThreads) {
      const float4 v = get4(x + c);
      sum = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, sum))));
    }
  } else {
    for (int64_t c = threadIdx.x; c < cols; c += kNormThreads)
      sum = fmaf(get(x + c), get(x + c), sum);
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  float total = 0;
  for (float value : partial) total += value;
  return 1.0f / sqrtf(total / static_cast<float>(cols) + eps);
}

// A norm's weight into the L2 cache, before the row is there; by kNormThreads.
__device__ inline void prefetch_weight(const float* weight, int64_t cols) {
  for (int64_t c = 32 * threadIdx.x; c < cols; c += 32 * kNormThreads)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(weight + c));
}

__device__ inline float4 normalised(float4 x, float scale, float4 weight) {
  return {x.x * scale * weight.x,
          x.y * scale * weight.y,
          x.z * scale * weight.z,
          x.w * scale * weight.w};
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ inline float gelu_tanh(float x) {
  const float inner = 0.7978845608028654f * fmaf(0.044715f * x * x, x, x);
  return 0.5f * x * (1.0f + tanhf(inner));
}
__device__ inline float gated(Gate gate, float by, float value) {
  return (gate == Gate::kSilu ? silu(by) : gelu_tanh(by)) * value;
}

}  // namespace headwater::cuda
