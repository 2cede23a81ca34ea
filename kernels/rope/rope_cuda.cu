#include <algorithm>

#include "kernels/attention/paged_kv_cuda.cuh"
#include "kernels/base/check.h"
#include "kernels/base/elements_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/rope/rope_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAppendThreads = 256;
constexpr int32_t kBlockHeads = 8;

struct Frequencies {  // travels as a kernel argument
  double values[kMaxRotaryDim / 2];
};

__global__ void angles_kernel(Frequencies inv_freq,
                              int32_t half,
                              float magnitude,
                              const int32_t* positions,
                              float* out,
                              int64_t out_stride) {
  start_next();
  wait_for_previous();
  float* row = out + blockIdx.x * out_stride;
  for (int32_t i = threadIdx.x; i < half; i += kThreads) {
    double sine, cosine;
    sincos(positions[blockIdx.x] * inv_freq.values[i], &sine, &cosine);
    row[i] = static_cast<float>(cosine) * magnitude;
    row[half + i] = static_cast<float>(sine) * magnitude;
  }
}

template <typename T>
struct Append {
  int32_t layer, num_heads, num_kv_heads, head_dim;
  int32_t half;  // pairs to rotate; 0: none
  bool adjacent;
  const int32_t *positions, *row_seq;
  PageList pages;
  const float* angles;
  T *q, *k;
  const T* v;
  int64_t angles_stride, q_stride, k_stride, v_stride;
};

struct Slot {  // where a KV head has the row's token
  std::byte *k, *v;
  DType format;
};

__device__ inline void rotate(float& first, float& second, float cosine, float sine) {
  const float p = first, q = second;
  first = p * cosine - q * sine;
  second = p * sine + q * cosine;
}

// Block (row, kBlockHeads heads): query heads are rotated; KV heads, which follow them, are rotated
// and written to their pages. kVectors: whole fours of pairs.
template <bool kVectors, typename T>
__global__ void __launch_bounds__(kAppendThreads) append_kernel(Append<T> a) {
  constexpr int kPairs = kVectors ? 4 : 1;  // of a thread
  __shared__ Slot slots[kBlockHeads];
  start_next();
  const int32_t row = blockIdx.x;
  const int32_t first_head = blockIdx.y * kBlockHeads;
  const int32_t heads = min(kBlockHeads, a.num_heads + a.num_kv_heads - first_head);
  const auto values_of = [&](int32_t head) {
    return head < a.num_heads ? a.q + row * a.q_stride + head * a.head_dim
                              : a.k + row * a.k_stride + (head - a.num_heads) * a.head_dim;
  };
  const int32_t first_kv = max(0, first_head - a.num_heads);
  const int32_t num_kv = max(0, first_head + heads - a.num_heads - first_kv);
  if (static_cast<int32_t>(threadIdx.x) < num_kv) {  // the step's own, there before the kernels
    const auto head = static_cast<int32_t>(first_kv + threadIdx.x);
    const HeadPages pages(a.pages, a.num_kv_heads, a.layer, head, a.row_seq[row]);
    const PageShape& page = pages.group->page;
    std::byte* k = a.pages.arena + pages.token_at(a.positions[row]);
    slots[threadIdx.x] = {k, k + page.k_bytes(), page.format};
  }
  wait_for_previous();
  const float* angles = a.angles + row * a.angles_stride;
  for (int32_t i = kPairs * threadIdx.x; i < heads * a.half; i += kPairs * kAppendThreads) {
    const int32_t pair = i % a.half;
    T* x = values_of(first_head + i / a.half) + (a.adjacent ? 2 * pair : pair);
    T* y = x + (a.adjacent ? kPairs : a.half);
    if constexpr (kVectors) {
      const float4 cosine = get4(angles + pair), sine = get4(angles + a.half + pair);
      float4 p = get4(x), q = get4(y);
      if (a.adjacent) {
        rotate(p.x, p.y, cosine.x, sine.x);
        rotate(p.z, p.w, cosine.y, sine.y);
        rotate(q.x, q.y, cosine.z, sine.z);
        rotate(q.z, q.w, cosine.w, sine.w);
      } else {
        rotate(p.x, q.x, cosine.x, sine.x);
        rotate(p.y, q.y, cosine.y, sine.y);
        rotate(p.z, q.z, cosine.z, sine.z);
        rotate(p.w, q.w, cosine.w, sine.w);
      }
      put4(x, p);
      put4(y, q);
    } else {
      float p = get(x), q = get(y);
      rotate(p, q, angles[pair], angles[a.half + pair]);
      put(x, p);
      put(y, q);
    }
  }
  if (num_kv == 0) return;
  __syncthreads();
  for (int32_t i = 4 * threadIdx.x; i < num_kv * a.head_dim; i += 4 * kAppendThreads) {
    const int32_t head = first_kv + i / a.head_dim, d = i % a.head_dim;
    const Slot& slot = slots[head - first_kv];
    store_kv4(slot.k, slot.format, d, get4(a.k + row * a.k_stride + head * a.head_dim + d));
    store_kv4(slot.v, slot.format, d, get4(a.v + row * a.v_stride + head * a.head_dim + d));
  }
}

}  // namespace

void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out, const Stream& stream) {
  if (step.num_rows == 0) return;
  HW_CHECK(rope.rotary_dim <= kMaxRotaryDim, "more rotary dimensions than", kMaxRotaryDim);
  Frequencies inv_freq{};
  std::copy(rope.inv_freq.begin(), rope.inv_freq.end(), inv_freq.values);
  launch(stream,
         angles_kernel,
         dim3(static_cast<unsigned>(step.num_rows)),
         kThreads,
         0,
         inv_freq,
         rope.rotary_dim / 2,
         rope.magnitude,
         step.positions,
         out.f32_row(0),
         out.stride);
}

void rope_append_kv(int32_t layer,
                    const HeadShape& heads,
                    const RopeSpec& rope,
                    const StepView& step,
                    Matrix angles,
                    Matrix q,
                    Matrix k,
                    Matrix v,
                    const Stream& stream) {
  if (step.num_rows == 0) return;
  for (const Matrix& m : {q, k, v})
    HW_CHECK(m.dtype == q.dtype && m.stride % 4 == 0, "rows of q, k and v", m.stride);
  const int32_t half = angles.rows == 0 ? 0 : rope.rotary_dim / 2;
  const bool vectors = half % 4 == 0 && angles.stride % 4 == 0;
  const int32_t num_heads = heads.num_heads + heads.num_kv_heads;
  const dim3 grid(static_cast<unsigned>(step.num_rows),
                  static_cast<unsigned>((num_heads + kBlockHeads - 1) / kBlockHeads));
  with_element(q.dtype, [&](auto element) {
    using T = decltype(element);
    const Append<T> args{layer,
                         heads.num_heads,
                         heads.num_kv_heads,
                         heads.head_dim,
                         half,
                         rope.pairing == RopePairing::kAdjacent,
                         step.positions,
                         step.row_seq,
                         step.pages,
                         static_cast<const float*>(angles.data),
                         static_cast<T*>(q.data),
                         static_cast<T*>(k.data),
                         static_cast<const T*>(v.data),
                         angles.stride,
                         q.stride,
                         k.stride,
                         v.stride};
    launch(stream,
           vectors ? append_kernel<true, T> : append_kernel<false, T>,
           grid,
           kAppendThreads,
           0,
           args);
  });
}

}  // namespace headwater::cuda
