// The CPU's paged attention. Online softmax over blocks of 64 positions inside segments of 1024,
// both aligned to positions; segments are merged in order. So a query row's bits depend on its own
// inputs only: one row or a tile of rows, split over threads or not, whatever pages hold the keys.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/ops.h"

namespace headwater::cpu {

constexpr int32_t kSegment = 1024;  // positions of a segment

// Whether no row from first_row on sees anything of a segment: behind the sinks, before the window.
inline bool hidden_segment(const AttentionArgs& args,
                           const StepView& step,
                           int32_t kv_head,
                           int32_t first_row,
                           int32_t segment) {
  const PageList& pages = step.pages;
  const int32_t g = pages.heads[int64_t{args.layer} * args.heads.num_kv_heads + kv_head].group;
  const KvGroupShape& group = pages.groups[g];
  return group.shard_stride == 0 && segment * kSegment >= group.sink_tokens &&
         (segment + 1) * kSegment <= pages.window_start[int64_t{g} * step.num_rows + first_row];
}

// Query rows of one kv head that one task computes: tokens [first_row, end_row) of one sequence,
// over segments [first_segment, end_segment).
struct AttentionTask {
  int32_t seq = 0;
  int32_t kv_head = 0;
  int32_t first_row = 0;
  int32_t end_row = 0;
  int32_t first_segment = 0;
  int32_t end_segment = 0;
  int64_t partial = -1;  // where the unmerged segment goes; -1: the task finishes its rows
};

// Working memory of attention; grows to the largest step seen. Engine thread only.
struct AttentionScratch {
  std::vector<AttentionTask> tasks;
  std::vector<AttentionTask> merges;  // split rows: partial = the first of their segments
  std::vector<std::vector<float>> per_thread;
  std::vector<float> partials;
};

void attention(const AttentionArgs& args,
               const StepView& step,
               ThreadPool& pool,
               AttentionScratch& scratch);

}  // namespace headwater::cpu
