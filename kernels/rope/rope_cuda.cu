#include <algorithm>

#include "kernels/attention/paged_kv_cuda.cuh"
#include "kernels/base/check.h"
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

struct Append {
  int32_t layer, num_heads, num_kv_heads, head_dim;
  int32_t half;  // pairs to rotate; 0: none
  bool adjacent;
  const int32_t *positions, *row_seq;
  PageList pages;
  const float* angles;
  float *q, *k;
  const float* v;
  int64_t angles_stride, q_stride, k_stride, v_stride;
};

struct Slot {  // where a KV head has the row's token
  std::byte *k, *v;
  DType format;
};

// Block (row, kBlockHeads heads): query heads are rotated; KV heads, which follow them, are rotated
// and written to their pages.
__global__ void __launch_bounds__(kAppendThreads) append_kernel(Append a) {
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
  for (int32_t i = threadIdx.x; i < heads * a.half; i += kAppendThreads) {
    const int32_t pair = i % a.half;
    float* x = values_of(first_head + i / a.half);
    float& first = x[a.adjacent ? 2 * pair : pair];
    float& second = x[a.adjacent ? 2 * pair + 1 : pair + a.half];
    const float cosine = angles[pair], sine = angles[a.half + pair];
    const float p = first, q = second;
    first = p * cosine - q * sine;
    second = p * sine + q * cosine;
  }
  if (num_kv == 0) return;
  __syncthreads();
  for (int32_t i = threadIdx.x; i < num_kv * a.head_dim; i += kAppendThreads) {
    const int32_t head = first_kv + i / a.head_dim, d = i % a.head_dim;
    const Slot& slot = slots[head - first_kv];
    store_kv(slot.k, slot.format, d, a.k[row * a.k_stride + head * a.head_dim + d]);
    store_kv(slot.v, slot.format, d, a.v[row * a.v_stride + head * a.head_dim + d]);
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
  const Append args{layer,
                    heads.num_heads,
                    heads.num_kv_heads,
                    heads.head_dim,
                    angles.rows == 0 ? 0 : rope.rotary_dim / 2,
                    rope.pairing == RopePairing::kAdjacent,
                    step.positions,
                    step.row_seq,
                    step.pages,
                    static_cast<const float*>(angles.data),
                    q.f32_row(0),
                    k.f32_row(0),
                    v.f32_row(0),
                    angles.stride,
                    q.stride,
                    k.stride,
                    v.stride};
  const int32_t num_heads = heads.num_heads + heads.num_kv_heads;
  const dim3 grid(static_cast<unsigned>(step.num_rows),
                  static_cast<unsigned>((num_heads + kBlockHeads - 1) / kBlockHeads));
  launch(stream, append_kernel, grid, kAppendThreads, 0, args);
}

}  // namespace headwater::cuda
