#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/paged_kv_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 64;

struct Fold {
  int32_t layer, num_kv_heads, head_dim;
  const int32_t *positions, *row_begin;
  PageList pages;
};

// Block (sequence, kv head, columns): a thread owns a column of the record, K's then V's, through
// all blocks that the sequence's rows open, so a record it adds to is one it wrote itself.
__global__ void fold_kernel(Fold a) {
  start_next();
  wait_for_previous();
  const int32_t column = blockIdx.z * kThreads + threadIdx.x;
  const int32_t begin = a.row_begin[blockIdx.x];
  const int32_t end = a.row_begin[blockIdx.x + 1];
  if (column >= 2 * a.head_dim || begin == end) return;
  const HeadPages pages(a.pages, a.num_kv_heads, a.layer, blockIdx.y, blockIdx.x);
  const KvGroupShape& group = *pages.group;
  if (group.record_begin < 0) return;
  const int64_t half = column < a.head_dim ? 0 : group.page.k_bytes();
  const int32_t d = column % a.head_dim;
  const int32_t block_tokens = group.block_tokens;
  const int32_t first_position = a.positions[begin];
  const int32_t last_position = first_position + (end - begin) - 1;
  const int32_t first_block = (first_position + block_tokens - 1) / block_tokens;
  for (int32_t block = max(first_block, 1); block <= last_position / block_tokens; ++block) {
    const int32_t block_begin = block * block_tokens;
    float sum = 0;
    for (int32_t p = max(block_begin - block_tokens, group.sink_tokens); p < block_begin; ++p)
      sum += load_kv(a.pages.arena + pages.token_at(p) + half, group.page.format, d);
    pages.record_at(block)[column] = block > 1 ? pages.record_at(block - 1)[column] + sum : sum;
  }
}

}  // namespace

void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step, const Stream& stream) {
  if (step.num_rows == 0) return;
  const dim3 grid(static_cast<unsigned>(step.num_seqs),
                  static_cast<unsigned>(heads.num_kv_heads),
                  static_cast<unsigned>((2 * heads.head_dim + kThreads - 1) / kThreads));
  const Fold args{
      layer, heads.num_kv_heads, heads.head_dim, step.positions, step.row_begin, step.pages};
  launch(stream, fold_kernel, grid, kThreads, 0, args);
}

}  // namespace headwater::cuda
