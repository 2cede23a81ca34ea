#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/paged_kv_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kSlices = 16;  // that share the blocks of a sequence's rows

struct Fold {
  int32_t layer, num_kv_heads, head_dim;
  int32_t column_tiles;  // of kThreads
  bool single_rows;      // a sequence opens one block at most
  const int32_t *positions, *row_begin;
  PageList pages;
};

// A column of the records, K's then V's, of one sequence and KV head, and the blocks that the
// sequence's rows open.
struct Column {
  HeadPages pages;
  int32_t index, first_block, last_block;  // last < first: nothing to do

  __device__ Column(const Fold& a, int32_t column)
      : pages(a.pages, a.num_kv_heads, a.layer, blockIdx.y, blockIdx.x), index(column) {
    const int32_t begin = a.row_begin[blockIdx.x], end = a.row_begin[blockIdx.x + 1];
    const KvGroupShape& group = *pages.group;
    first_block = 1;
    last_block = 0;
    if (column >= 2 * a.head_dim || begin == end || group.record_begin < 0) return;
    const int32_t first_position = a.positions[begin];
    first_block = max(1, (first_position + group.block_tokens - 1) / group.block_tokens);
    last_block = (first_position + (end - begin) - 1) / group.block_tokens;
  }
};

// Block (sequence, kv head, (slice, columns)): the sums over the blocks of tokens before the opened
// ones; where there is one at most, with what lies before it.
__global__ void sum_kernel(Fold a) {
  start_next();
  wait_for_previous();
  const auto slice = static_cast<int32_t>(blockIdx.z) / a.column_tiles;
  const auto slices = static_cast<int32_t>(gridDim.z) / a.column_tiles;
  const Column at(a, static_cast<int32_t>(blockIdx.z) % a.column_tiles * kThreads + threadIdx.x);
  const KvGroupShape& group = *at.pages.group;
  const int64_t half = at.index < a.head_dim ? 0 : group.page.k_bytes();
  const int32_t d = at.index % a.head_dim;
  for (int32_t block = at.first_block + slice; block <= at.last_block; block += slices) {
    const int32_t end = block * group.block_tokens;
    float sum = 0;
#pragma unroll 8
    for (int32_t p = max(end - group.block_tokens, group.sink_tokens); p < end; ++p)
      sum += load_kv(a.pages.arena + at.pages.token_at(p) + half, group.page.format, d);
    if (a.single_rows && block > 1) sum = at.pages.record_at(block - 1)[at.index] + sum;
    at.pages.record_at(block)[at.index] = sum;
  }
}

// Block (sequence, kv head, columns): adds to each record the one before it.
__global__ void accumulate_kernel(Fold a) {
  start_next();
  wait_for_previous();
  const Column at(a, static_cast<int32_t>(blockIdx.z) * kThreads + threadIdx.x);
  const int32_t first = max(at.first_block, 2);
  if (first > at.last_block) return;
  float sum = at.pages.record_at(first - 1)[at.index];
  for (int32_t block = first; block <= at.last_block; ++block) {
    float* record = at.pages.record_at(block) + at.index;
    sum += *record;
    *record = sum;
  }
}

}  // namespace

void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step, const Stream& stream) {
  if (step.num_rows == 0) return;
  const Fold args{layer,
                  heads.num_kv_heads,
                  heads.head_dim,
                  (2 * heads.head_dim + kThreads - 1) / kThreads,
                  step.num_rows == step.num_seqs,
                  step.positions,
                  step.row_begin,
                  step.pages};
  const auto grid = [&](unsigned slices) {
    return dim3(static_cast<unsigned>(step.num_seqs),
                static_cast<unsigned>(heads.num_kv_heads),
                static_cast<unsigned>(args.column_tiles) * slices);
  };
  launch(stream, sum_kernel, grid(args.single_rows ? 1 : kSlices), kThreads, 0, args);
  if (!args.single_rows) launch(stream, accumulate_kernel, grid(1), kThreads, 0, args);
}

}  // namespace headwater::cuda
