// Elements of activations, f32 or f16: how kernels that compute in fp32 read and write them. What
// f16 cannot hold counts as its largest, however it came: an activation that large is a spike among
// small ones, and an infinity would spread.
#pragma once

#include <cuda_fp16.h>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"
#include "kernels/base/tensor.h"

namespace headwater::cuda {

constexpr float kLargestHalf = 65504.0f;

__device__ inline float saturate(float value) {
  return fminf(fmaxf(value, -kLargestHalf), kLargestHalf);
}
__device__ inline __half to_half(float value) { return __float2half_rn(saturate(value)); }

__device__ inline float get(const float* from) { return *from; }
__device__ inline float get(const __half* from) { return saturate(__half2float(*from)); }
__device__ inline void put(float* to, float value) { *to = value; }
__device__ inline void put(__half* to, float value) { *to = to_half(value); }

// Four at once, aligned to their size.
__device__ inline float4 get4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ inline float4 get4(const __half* from) {
  const uint2 bits = *reinterpret_cast<const uint2*>(from);
  const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
  const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
  return {saturate(a.x), saturate(a.y), saturate(b.x), saturate(b.y)};
}
__device__ inline void put4(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
__device__ inline void put4(__half* to, float4 v) {
  const __half2 pairs[2] = {__halves2half2(to_half(v.x), to_half(v.y)),
                            __halves2half2(to_half(v.z), to_half(v.w))};
  *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pairs);
}

// Two at once, aligned to their size.
__device__ inline float2 get2(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ inline float2 get2(const __half* from) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(from));
  return {saturate(pair.x), saturate(pair.y)};
}

__device__ inline void put2(float* to, float2 v) { *reinterpret_cast<float2*>(to) = v; }
__device__ inline void put2(__half* to, float2 v) {
  *reinterpret_cast<__half2*>(to) = __halves2half2(to_half(v.x), to_half(v.y));
}

// Activations of a type that is known when the kernel runs: for kernels that touch each once.
struct Activations {
  void* data;
  int64_t stride;
  bool half;

  Activations() = default;
  explicit Activations(Matrix m) : data(m.data), stride(m.stride), half(m.dtype == DType::kF16) {
    HW_CHECK(m.dtype != DType::kBF16, "activations are f32 or f16");
  }
  // Calls body with a pointer to an element.
  template <typename Body>
  __device__ auto at(int64_t row, int64_t col, const Body& body) const {
    const int64_t i = row * stride + col;
    return half ? body(static_cast<__half*>(data) + i) : body(static_cast<float*>(data) + i);
  }
  __device__ float get(int64_t row, int64_t col) const {
    return at(row, col, [](const auto* x) { return cuda::get(x); });
  }
  __device__ float2 get2(int64_t row, int64_t col) const {  // col is even
    return at(row, col, [](const auto* x) { return cuda::get2(x); });
  }
  __device__ void put(int64_t row, int64_t col, float value) const {
    at(row, col, [=](auto* x) { cuda::put(x, value); });
  }
};

// Calls body with a zero of the element's type.
template <typename Body>
void with_element(DType dtype, const Body& body) {
  HW_CHECK(dtype != DType::kBF16, "activations are f32 or f16", static_cast<int>(dtype));
  if (dtype == DType::kF16) return body(__half{});
  body(float{});
}

}  // namespace headwater::cuda
