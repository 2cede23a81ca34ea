// One block per draw, which runs the body that all devices share. Compiled without fused
// multiply-add: sums and weights have the host's bits.
#include "kernels/base/launch_cuda.cuh"
#include "kernels/sample/draw_tokens_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 256;

struct BlockOfThreads {
  template <typename F>
  __device__ void each(int32_t n, F f) const {
    for (auto i = static_cast<int32_t>(threadIdx.x); i < n; i += kThreads) f(i);
    __syncthreads();
  }
};

__global__ void __launch_bounds__(kThreads) draw_tokens_kernel(const float* logits,
                                                               int64_t stride,
                                                               int64_t vocab_size,
                                                               const TopLogits* tops,
                                                               const TokenDraw* draws,
                                                               int32_t* tokens,
                                                               int32_t* staged) {
  start_next();
  wait_for_previous();
  __shared__ DrawScratch scratch;
  const int32_t token = draw_token(logits + blockIdx.x * stride,
                                   tops[blockIdx.x],
                                   draws[blockIdx.x],
                                   vocab_size,
                                   scratch,
                                   BlockOfThreads());
  if (threadIdx.x != 0) return;
  tokens[blockIdx.x] = token;
  if (staged != nullptr) staged[blockIdx.x] = token;
}

__global__ void __launch_bounds__(kThreads)
    take_tokens_kernel(const int32_t* drawn, int32_t* ids, int64_t count) {
  start_next();
  wait_for_previous();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count && ids[i] < 0) ids[i] = max(drawn[-1 - ids[i]], 0);
}

}  // namespace

void draw_tokens(Matrix logits,
                 const TopLogits* tops,
                 const TokenDraw* draws,
                 int32_t* tokens,
                 int32_t* staged,
                 const Stream& stream) {
  if (logits.rows == 0) return;
  launch(stream,
         draw_tokens_kernel,
         dim3(static_cast<unsigned>(logits.rows)),
         kThreads,
         0,
         static_cast<const float*>(logits.data),
         logits.stride,
         logits.cols,
         tops,
         draws,
         tokens,
         staged);
}

void take_tokens(const int32_t* drawn, int32_t* ids, int64_t count, const Stream& stream) {
  launch(stream,
         take_tokens_kernel,
         dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)),
         kThreads,
         0,
         drawn,
         ids,
         count);
}

}  // namespace headwater::cuda
