#include "kernels/base/elements_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/norm/norm_cuda.cuh"
#include "kernels/norm/rows_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// kVectors: rows of whole fours.
template <bool kVectors, typename In, typename Out>
__global__ void rms_norm_kernel(const In* x,
                                int64_t x_stride,
                                const float* weight,
                                float eps,
                                Out* out,
                                int64_t out_stride,
                                int64_t cols) {
  start_next();
  prefetch_weight(weight, cols);
  wait_for_previous();
  const In* in = x + blockIdx.x * x_stride;
  Out* row = out + blockIdx.x * out_stride;
  const float scale = rms_scale<kVectors>(in, cols, eps);
  if constexpr (kVectors) {
    for (int64_t c = 4 * threadIdx.x; c < cols; c += 4 * kNormThreads)
      put4(row + c, normalised(get4(in + c), scale, get4(weight + c)));
  } else {
    for (int64_t c = threadIdx.x; c < cols; c += kNormThreads)
      put(row + c, get(in + c) * scale * weight[c]);
  }
}

// kVectors: rows of whole fours, one a thread.
template <bool kVectors, typename T>
__global__ void add_bias_kernel(T* x, int64_t stride, const float* bias, int64_t cols) {
  start_next();
  wait_for_previous();
  const int64_t c = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * (kVectors ? 4 : 1);
  if (c >= cols) return;
  T* to = x + blockIdx.x * stride + c;
  if constexpr (kVectors) {
    const float4 v = get4(to), b = get4(bias + c);
    put4(to, {v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w});
  } else {
    put(to, get(to) + bias[c]);
  }
}

// kVectors: rows of whole fours, one a thread.
template <Gate kGate, bool kVectors, typename In, typename Out>
__global__ void gate_mul_kernel(
    const In* gate_up, int64_t in_stride, Out* out, int64_t out_stride, int64_t cols) {
  start_next();
  wait_for_previous();
  const int64_t c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  const In* in = gate_up + blockIdx.x * in_stride;
  Out* row = out + blockIdx.x * out_stride;
  if constexpr (kVectors) {
    if (c >= cols / 4) return;
    const float4 gate = get4(in + 4 * c);
    const float4 up = get4(in + cols + 4 * c);
    put4(row + 4 * c,
         {gated(kGate, gate.x, up.x),
          gated(kGate, gate.y, up.y),
          gated(kGate, gate.z, up.z),
          gated(kGate, gate.w, up.w)});
  } else if (c < cols) {
    put(row + c, gated(kGate, get(in + c), get(in + cols + c)));
  }
}

__global__ void add_scaled_kernel(
    const float* x, int64_t x_stride, float scale, float* out, int64_t out_stride, int64_t cols) {
  start_next();
  wait_for_previous();
  const int64_t c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= cols) return;
  float& y = out[blockIdx.x * out_stride + c];
  y = fmaf(scale, x[blockIdx.x * x_stride + c], y);
}

__global__ void softcap_kernel(float* x, int64_t stride, float cap, int64_t cols) {
  start_next();
  wait_for_previous();
  const int64_t c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= cols) return;
  float& y = x[blockIdx.x * stride + c];
  y = cap * tanhf(y / cap);
}

// Block (row, kWarps heads).
template <typename T>
__global__ void head_norm_kernel(
    T* x, int64_t stride, const float* weight, float eps, int32_t num_heads, int32_t head_dim) {
  start_next();
  wait_for_previous();
  const int32_t h = static_cast<int32_t>(blockIdx.y) * kWarps + threadIdx.x / 32;
  const int32_t lane = threadIdx.x % 32;
  if (h >= num_heads) return;
  T* head = x + blockIdx.x * stride + int64_t{h} * head_dim;
  float sum = 0;
  for (int32_t d = lane; d < head_dim; d += 32) sum = fmaf(get(head + d), get(head + d), sum);
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(head_dim) + eps);
  for (int32_t d = lane; d < head_dim; d += 32) put(head + d, get(head + d) * scale * weight[d]);
}

__global__ void gather_kernel(const float* x,
                              int64_t x_stride,
                              const int32_t* rows,
                              float* out,
                              int64_t out_stride,
                              int64_t cols) {
  start_next();
  wait_for_previous();
  const int64_t c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c < cols) out[blockIdx.x * out_stride + c] = x[rows[blockIdx.x] * x_stride + c];
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// [rows, columns in blocks of kThreads]
dim3 grid_of(int64_t rows, int64_t cols) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>((cols + kThreads - 1) / kThreads)};
}

template <Gate kGate>
void gate_mul(Matrix gate_up, Matrix out, const Stream& stream) {
  if (out.rows == 0) return;
  const bool vectors = out.cols % 4 == 0 && gate_up.stride % 4 == 0 && out.stride % 4 == 0 &&
                       aligned(gate_up.data) && aligned(out.data);
  with_element(gate_up.dtype, [&](auto in) {
    with_element(out.dtype, [&](auto to) {
      using In = decltype(in);
      using Out = decltype(to);
      launch(
          stream,
          vectors ? gate_mul_kernel<kGate, true, In, Out> : gate_mul_kernel<kGate, false, In, Out>,
          grid_of(out.rows, vectors ? out.cols / 4 : out.cols),
          kThreads,
          0,
          static_cast<const In*>(gate_up.data),
          gate_up.stride,
          static_cast<Out*>(out.data),
          out.stride,
          out.cols);
    });
  });
}

}  // namespace

void rms_norm(Matrix x, const float* weight, float eps, Matrix out, const Stream& stream) {
  if (x.rows == 0) return;
  const bool vectors = x.cols % 4 == 0 && x.stride % 4 == 0 && out.stride % 4 == 0 &&
                       aligned(x.data) && aligned(out.data) && aligned(weight);
  with_element(x.dtype, [&](auto from) {
    with_element(out.dtype, [&](auto to) {
      using In = decltype(from);
      using Out = decltype(to);
      launch(stream,
             vectors ? rms_norm_kernel<true, In, Out> : rms_norm_kernel<false, In, Out>,
             dim3(static_cast<unsigned>(x.rows)),
             kNormThreads,
             0,
             static_cast<const In*>(x.data),
             x.stride,
             weight,
             eps,
             static_cast<Out*>(out.data),
             out.stride,
             x.cols);
    });
  });
}

void add_bias(Matrix x, const float* bias, const Stream& stream) {
  if (x.rows == 0) return;
  const bool vectors = x.cols % 4 == 0 && x.stride % 4 == 0 && aligned(x.data) && aligned(bias);
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    launch(stream,
           vectors ? add_bias_kernel<true, T> : add_bias_kernel<false, T>,
           grid_of(x.rows, vectors ? x.cols / 4 : x.cols),
           kThreads,
           0,
           static_cast<T*>(x.data),
           x.stride,
           bias,
           x.cols);
  });
}

void silu_mul(Matrix gate_up, Matrix out, const Stream& stream) {
  gate_mul<Gate::kSilu>(gate_up, out, stream);
}
void gelu_mul(Matrix gate_up, Matrix out, const Stream& stream) {
  gate_mul<Gate::kGeluTanh>(gate_up, out, stream);
}

void add_scaled(Matrix x, float scale, Matrix out, const Stream& stream) {
  if (out.rows == 0) return;
  launch(stream,
         add_scaled_kernel,
         grid_of(out.rows, out.cols),
         kThreads,
         0,
         x.f32_row(0),
         x.stride,
         scale,
         out.f32_row(0),
         out.stride,
         out.cols);
}

void softcap(Matrix x, float cap, const Stream& stream) {
  if (x.rows == 0) return;
  launch(stream,
         softcap_kernel,
         grid_of(x.rows, x.cols),
         kThreads,
         0,
         x.f32_row(0),
         x.stride,
         cap,
         x.cols);
}

void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads, const Stream& stream) {
  if (x.rows == 0) return;
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    launch(stream,
           head_norm_kernel<T>,
           dim3(static_cast<unsigned>(x.rows),
                static_cast<unsigned>((num_heads + kWarps - 1) / kWarps)),
           kThreads,
           0,
           static_cast<T*>(x.data),
           x.stride,
           weight,
           eps,
           num_heads,
           static_cast<int32_t>(x.cols / num_heads));
  });
}

void gather_rows(Matrix x, const int32_t* rows, Matrix out, const Stream& stream) {
  if (out.rows == 0) return;
  launch(stream,
         gather_kernel,
         grid_of(out.rows, out.cols),
         kThreads,
         0,
         x.f32_row(0),
         x.stride,
         rows,
         out.f32_row(0),
         out.stride,
         out.cols);
}

}  // namespace headwater::cuda
