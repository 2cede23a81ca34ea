#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/gradient/rows_cuda.cuh"
#include "kernels/rope/rope_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// The block's sum, to every thread.
__device__ double block_sum(double value) {
  __shared__ double partial[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  __syncthreads();  // whoever still reads the sum before
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  for (const double part : partial) sum += part;
  return sum;
}

// Block: a row.
__global__ void __launch_bounds__(kThreads) rms_norm_backward_kernel(const float* x,
                                                                     int64_t x_stride,
                                                                     const float* weight,
                                                                     float eps,
                                                                     const float* dy,
                                                                     int64_t dy_stride,
                                                                     float* dx,
                                                                     int64_t dx_stride,
                                                                     int64_t cols) {
  wait_for_previous();
  const float* in = x + blockIdx.x * x_stride;
  const float* by = dy + blockIdx.x * dy_stride;
  float* out = dx + blockIdx.x * dx_stride;
  double squares = 0, along = 0;
  for (int64_t c = threadIdx.x; c < cols; c += kThreads) {
    squares += double{in[c]} * in[c];
    along += double{by[c]} * weight[c] * in[c];
  }
  squares = block_sum(squares);
  along = block_sum(along);
  const float scale = 1.0f / sqrtf(static_cast<float>(squares / static_cast<double>(cols)) + eps);
  const auto pull = static_cast<float>(along * scale * scale / static_cast<double>(cols));
  for (int64_t c = threadIdx.x; c < cols; c += kThreads)
    out[c] += scale * (by[c] * weight[c] - pull * in[c]);
}

__global__ void silu_mul_backward_kernel(const float* gate_up,
                                         int64_t gate_stride,
                                         const float* d_out,
                                         int64_t d_out_stride,
                                         float* d_gate_up,
                                         int64_t d_gate_stride,
                                         int64_t cols) {
  wait_for_previous();
  const int64_t c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= cols) return;
  const float gate = gate_up[blockIdx.x * gate_stride + c];
  const float up = gate_up[blockIdx.x * gate_stride + cols + c];
  const float d = d_out[blockIdx.x * d_out_stride + c];
  const float s = 1.0f / (1.0f + expf(-gate));
  float* to = d_gate_up + blockIdx.x * d_gate_stride + c;
  to[0] = d * up * s * (1.0f + gate * (1.0f - s));
  to[cols] = d * gate * s;
}

struct Frequencies {  // travels as a kernel argument
  double values[kMaxRotaryDim / 2];
};

// Block: a row; a thread takes a pair of every head.
__global__ void rotate_kernel(Frequencies inv_freq,
                              int32_t half,
                              float magnitude,
                              float sign,
                              int32_t step,      // from a pair to the next
                              int32_t distance,  // between the two of a pair
                              int32_t num_heads,
                              int32_t head_dim,
                              float* qkv,
                              int64_t stride) {
  wait_for_previous();
  const auto i = static_cast<int32_t>(threadIdx.x);
  double sine, cosine;
  sincos(static_cast<double>(blockIdx.x) * inv_freq.values[i], &sine, &cosine);
  const float c = static_cast<float>(cosine) * magnitude;
  const float s = static_cast<float>(sine) * sign * magnitude;
  for (auto head = static_cast<int32_t>(threadIdx.y); head < num_heads;
       head += static_cast<int32_t>(blockDim.y)) {
    float* a = qkv + blockIdx.x * stride + int64_t{head} * head_dim + i * step;
    const float first = a[0], second = a[distance];
    a[0] = first * c - second * s;
    a[distance] = first * s + second * c;
  }
}

__device__ float to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

__global__ void split_kernel(
    const float* x, int64_t x_stride, int64_t cols, float* high, float* low) {
  wait_for_previous();
  const int64_t c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= cols) return;
  const float value = x[blockIdx.x * x_stride + c];
  const float most = to_tf32(value);
  high[blockIdx.x * cols + c] = most;
  low[blockIdx.x * cols + c] = to_tf32(value - most);
}

// [rows, columns in blocks of kThreads]
dim3 grid_of(int64_t rows, int64_t cols) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>((cols + kThreads - 1) / kThreads)};
}

}  // namespace

void rms_norm_backward(
    Matrix x, const float* weight, float eps, Matrix dy, Matrix dx, const Stream& stream) {
  launch(stream,
         rms_norm_backward_kernel,
         dim3(static_cast<unsigned>(x.rows)),
         kThreads,
         0,
         x.f32_row(0),
         x.stride,
         weight,
         eps,
         dy.f32_row(0),
         dy.stride,
         dx.f32_row(0),
         dx.stride,
         x.cols);
}

void silu_mul_backward(Matrix gate_up, Matrix d_out, Matrix d_gate_up, const Stream& stream) {
  launch(stream,
         silu_mul_backward_kernel,
         grid_of(d_out.rows, d_out.cols),
         kThreads,
         0,
         gate_up.f32_row(0),
         gate_up.stride,
         d_out.f32_row(0),
         d_out.stride,
         d_gate_up.f32_row(0),
         d_gate_up.stride,
         d_out.cols);
}

void rotate(const RopeSpec& rope,
            const HeadShape& heads,
            GradientOps::Turn turn,
            Matrix qkv,
            const Stream& stream) {
  HW_CHECK(rope.rotary_dim > 0 && rope.rotary_dim <= kMaxRotaryDim,
           "a rotary dimension that the kernel has room for",
           rope.rotary_dim);
  Frequencies frequencies{};
  std::ranges::copy(rope.inv_freq, frequencies.values);
  const int32_t half = rope.rotary_dim / 2;
  const bool adjacent = rope.pairing == RopePairing::kAdjacent;
  rotate_kernel<<<dim3(static_cast<unsigned>(qkv.rows)),
                  dim3(static_cast<unsigned>(half), static_cast<unsigned>(kThreads / 2 / half)),
                  0,
                  stream.get()>>>(frequencies,
                                  half,
                                  rope.magnitude,
                                  turn == GradientOps::Turn::kBack ? -1.0f : 1.0f,
                                  adjacent ? 2 : 1,
                                  adjacent ? 1 : half,
                                  heads.num_heads + heads.num_kv_heads,
                                  heads.head_dim,
                                  qkv.f32_row(0),
                                  qkv.stride);
  HW_CUDA_LAUNCHED();
}

void split_tf32(Matrix x, float* high, float* low, const Stream& stream) {
  launch(stream,
         split_kernel,
         grid_of(x.rows, x.cols),
         kThreads,
         0,
         x.f32_row(0),
         x.stride,
         x.cols,
         high,
         low);
}

}  // namespace headwater::cuda
