// The CPU's paged attention. Online softmax over blocks of 64 positions inside segments of 1024,
// both aligned to positions; segments are merged in order. So a query row's bits depend on its own
// inputs only: one row or a tile of rows, split over threads or not, whatever pages hold the keys.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/ops.h"

namespace headwater::cpu {

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
