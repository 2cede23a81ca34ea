#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/paged_kv_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kColumns = 8;      // of K or V, of a thread
constexpr unsigned kSlices = 8;  // that share the blocks of a sequence's rows

struct Fold {
  int32_t layer, num_kv_heads, head_dim;
  bool single_rows;  // a sequence opens one block at most
  const int32_t *positions, *row_begin;
  PageList pages;
};

// Of one sequence and KV head, the blocks that the sequence's rows open.
struct OpenedBlocks {
  HeadPages pages;
  int32_t first, last;  // last < first: none

  __device__ explicit OpenedBlocks(const Fold& a)
      : pages(a.pages, a.num_kv_heads, a.layer, blockIdx.y, blockIdx.x), first(1), last(0) {
    const int32_t begin = a.row_begin[blockIdx.x], end = a.row_begin[blockIdx.x + 1];
    const KvGroupShape& group = *pages.group;
    if (begin == end || group.record_begin < 0) return;
    const int32_t first_position = a.positions[begin];
    first = max(1, (first_position + group.block_tokens - 1) / group.block_tokens);
    last = (first_position + (end - begin) - 1) / group.block_tokens;
  }
};

// Block (sequence, kv head, slice): the sums over the blocks of tokens before the opened ones;
// where there is one at most, with what lies before it. Which tokens a thread adds, and the order
// of the threads' sums, depend on the sizes alone.
__global__ void __launch_bounds__(kThreads) sum_kernel(Fold a) {
  start_next();
  wait_for_previous();
  const OpenedBlocks opened(a);
  if (opened.last < opened.first) return;
  __shared__ float sums[kThreads * kColumns];  // [lane, column of K, then of V]
  const KvGroupShape& group = *opened.pages.group;
  const int32_t num_columns = 2 * a.head_dim, chunks = num_columns / kColumns;
  const int32_t lanes = kThreads / chunks, thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread / chunks, column = thread % chunks * kColumns;
  const int64_t half = column < a.head_dim ? 0 : group.page.k_bytes();
  for (int32_t block = opened.first + static_cast<int32_t>(blockIdx.z); block <= opened.last;
       block += static_cast<int32_t>(gridDim.z)) {
    const int32_t end = block * group.block_tokens;
    float sum[kColumns] = {};
    if (lane < lanes) {
#pragma unroll 8
      for (int32_t p = max(end - group.block_tokens, group.sink_tokens) + lane; p < end;
           p += lanes) {
        float values[kColumns];
        load_kv8(a.pages.arena + opened.pages.token_at(p) + half,
                 group.page.format,
                 column % a.head_dim,
                 values);
        for (int c = 0; c < kColumns; ++c) sum[c] += values[c];
      }
      for (int c = 0; c < kColumns; ++c) sums[lane * num_columns + column + c] = sum[c];
    }
    __syncthreads();
    if (thread < num_columns) {
      float total = 0;
      for (int32_t l = 0; l < lanes; ++l) total += sums[l * num_columns + thread];
      if (a.single_rows && block > 1) total = opened.pages.record_at(block - 1)[thread] + total;
      opened.pages.record_at(block)[thread] = total;
    }
    __syncthreads();
  }
}

// Block (sequence, kv head): adds to each record the one before it.
__global__ void __launch_bounds__(kThreads) accumulate_kernel(Fold a) {
  start_next();
  wait_for_previous();
  const OpenedBlocks opened(a);
  const auto column = static_cast<int32_t>(threadIdx.x);
  const int32_t first = max(opened.first, 2);
  if (first > opened.last || column >= 2 * a.head_dim) return;
  float sum = opened.pages.record_at(first - 1)[column];
  for (int32_t block = first; block <= opened.last; ++block) {
    float* record = opened.pages.record_at(block) + column;
    sum += *record;
    *record = sum;
  }
}

}  // namespace

void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step, const Stream& stream) {
  if (step.num_rows == 0) return;
  static_assert(2 * kMaxHeadDim <= kThreads);
  const Fold args{layer,
                  heads.num_kv_heads,
                  heads.head_dim,
                  step.num_rows == step.num_seqs,
                  step.positions,
                  step.row_begin,
                  step.pages};
  const dim3 lists(static_cast<unsigned>(step.num_seqs), static_cast<unsigned>(heads.num_kv_heads));
  const unsigned slices = args.single_rows ? 1 : kSlices;
  launch(stream, sum_kernel, dim3(lists.x, lists.y, slices), kThreads, 0, args);
  if (!args.single_rows) launch(stream, accumulate_kernel, lists, kThreads, 0, args);
}

}  // namespace headwater::cuda
