// One block per row, which reads it twice. The kTopLogits-th largest of the threads' maxima is at
// most the row's kTopLogits-th largest value, and with a thousand threads little lies between the
// two: the second pass gathers what is not below it, and a sort of that ends the matter.
#include <cfloat>
#include <cmath>

#include "kernels/base/launch_cuda.cuh"
#include "kernels/sample/top_logits_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 1024;

// NaN and +inf as TopLogits has them.
__device__ inline float comparable(float x) { return isnan(x) ? -FLT_MAX : fminf(x, FLT_MAX); }

// Keys grow with the value, and among equals with falling ids; no key of a token is 0.
__device__ inline uint64_t key_of(float value, uint32_t id) {
  const uint32_t bits = __float_as_uint(value == 0.0f ? 0.0f : value);  // -0 equals 0
  const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{order} << 32 | ~id;
}
__device__ inline float value_of(uint64_t key) {
  const auto order = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(order & 0x80000000u ? order & 0x7FFFFFFFu : ~order);
}

// Bitonic, descending; one key a thread.
__device__ void sort(uint64_t* keys) {
  const int i = static_cast<int>(threadIdx.x);
  for (int width = 2; width <= kThreads; width *= 2) {
    for (int apart = width / 2; apart > 0; apart /= 2) {
      __syncthreads();
      const int j = i ^ apart;
      const bool descends = (i & width) == 0;
      if (j > i && (keys[i] < keys[j]) == descends) {
        const uint64_t key = keys[i];
        keys[i] = keys[j];
        keys[j] = key;
      }
    }
  }
  __syncthreads();
}

// Calls body(value, id) for the thread's part of the row; loads run ahead.
template <typename Body>
__device__ void for_each_logit(const float* row, int64_t cols, const Body& body) {
  constexpr int kAhead = 8;
  for (int64_t first = threadIdx.x; first < cols; first += kAhead * kThreads) {
    float values[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t c = first + i * kThreads;
      values[i] = c < cols ? row[c] : -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) body(comparable(values[i]), first + i * kThreads);
  }
}

__global__ void __launch_bounds__(kThreads)
    top_logits_kernel(const float* logits, int64_t stride, int64_t cols, TopLogits* out) {
  start_next();
  wait_for_previous();
  __shared__ uint64_t keys[kThreads];
  __shared__ float sums[kThreads / 32];
  __shared__ int num_gathered;
  const auto thread = static_cast<int>(threadIdx.x);
  const float* row = logits + blockIdx.x * stride;
  TopLogits& top = out[blockIdx.x];

  float max = -INFINITY, sum = 0;  // sum of exp(x - row_max)
  for_each_logit(row, cols, [&](float x, int64_t) { max = fmaxf(max, x); });
  keys[thread] = key_of(max, static_cast<uint32_t>(thread));
  if (thread == 0) num_gathered = 0;
  sort(keys);
  const float row_max = value_of(keys[0]);
  const float threshold = value_of(keys[kTopLogits - 1]);
  __syncthreads();
  keys[thread] = 0;
  __syncthreads();

  for_each_logit(row, cols, [&](float x, int64_t c) {
    if (x == -INFINITY) return;
    sum += __expf(x - row_max);
    if (x < threshold) return;
    const int at = atomicAdd(&num_gathered, 1);
    if (at < kThreads) keys[at] = key_of(x, static_cast<uint32_t>(c));
  });
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (thread % 32 == 0) sums[thread / 32] = sum;
  sort(keys);
  if (thread == 0) {
    float total = 0;
    for (const float part : sums) total += part;
    top.log_sum_exp = row_max + logf(total);
    top.count = num_gathered > kThreads ? -1 : min(num_gathered, kTopLogits);
  }
  if (thread < kTopLogits) {
    top.ids[thread] = static_cast<int32_t>(~static_cast<uint32_t>(keys[thread]));
    top.logits[thread] = value_of(keys[thread]);
  }
}

}  // namespace

void top_logits(Matrix logits, TopLogits* out, const Stream& stream) {
  if (logits.rows == 0) return;
  launch(stream,
         top_logits_kernel,
         dim3(static_cast<unsigned>(logits.rows)),
         kThreads,
         0,
         static_cast<const float*>(logits.data),
         logits.stride,
         logits.cols,
         out);
}

}  // namespace headwater::cuda
