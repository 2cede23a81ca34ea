#include "kernels/attention/attention_cpu.h"

#include <algorithm>

#include "kernels/base/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/attention_cpu.cpp"
#include <hwy/foreach_target.h>

#include "kernels/attention/attention_kernels-inl.h"

#if HWY_ONCE
namespace headwater {

HWY_EXPORT(run_attention_task);
HWY_EXPORT(merge_segments);

namespace cpu {
namespace {

constexpr int32_t kTileRows = 48;  // query rows that share one visit of the keys

int32_t tile_tokens(const HeadShape& heads) {
  return std::max(1, kTileRows / (heads.num_heads / heads.num_kv_heads));
}

// Splits the rows of a sequence into tiles, long single tiles into segments too.
void plan_tasks(const AttentionArgs& args, const StepView& step, AttentionScratch& scratch) {
  scratch.tasks.clear();
  scratch.merges.clear();
  const HeadShape& heads = args.heads;
  const int64_t group = heads.num_heads / heads.num_kv_heads;
  const int32_t tokens = tile_tokens(heads);
  int64_t partial_floats = 0;
  for (int32_t seq = 0; seq < step.num_seqs; ++seq) {
    const int32_t begin = step.row_begin[seq];
    const int32_t end = step.row_begin[seq + 1];
    if (begin == end) continue;
    const bool one_tile = end - begin <= tokens;
    const int32_t last_tile = (end - begin - 1) / tokens;
    for (int32_t head = 0; head < heads.num_kv_heads; ++head) {
      for (int32_t tile = last_tile; tile >= 0; --tile) {  // longest first
        AttentionTask task;
        task.seq = seq;
        task.kv_head = head;
        task.first_row = begin + tile * tokens;
        task.end_row = std::min(task.first_row + tokens, end);
        task.end_segment = step.positions[task.end_row - 1] / kSegment + 1;
        if (one_tile && task.end_segment > 1) {
          AttentionTask merge = task;
          merge.partial = partial_floats;
          scratch.merges.push_back(merge);
          const int64_t rows = (end - begin) * group;
          for (int32_t segment = 0; segment < merge.end_segment; ++segment) {
            if (hidden_segment(args, step, head, merge.first_row, segment)) continue;
            task.first_segment = segment;
            task.end_segment = segment + 1;
            task.partial = partial_floats;
            scratch.tasks.push_back(task);
            partial_floats += rows * row_state_floats(heads.head_dim);
          }
        } else {
          scratch.tasks.push_back(task);
        }
      }
    }
  }
  if (static_cast<int64_t>(scratch.partials.size()) < partial_floats)
    scratch.partials.resize(static_cast<size_t>(2 * partial_floats));
}

}  // namespace

void attention(const AttentionArgs& args,
               const StepView& step,
               ThreadPool& pool,
               AttentionScratch& scratch) {
  plan_tasks(args, step, scratch);
  const int64_t rows =
      int64_t{tile_tokens(args.heads)} * (args.heads.num_heads / args.heads.num_kv_heads);
  const auto floats = static_cast<size_t>(task_floats(rows, args.heads.head_dim));
  scratch.per_thread.resize(static_cast<size_t>(pool.num_threads()));
  for (std::vector<float>& memory : scratch.per_thread)
    if (memory.size() < floats) memory.resize(floats);

  pool.parallel_for(static_cast<int64_t>(scratch.tasks.size()), [&](int64_t task, int thread) {
    HWY_DYNAMIC_DISPATCH(run_attention_task)
    (args,
     step,
     scratch.tasks[static_cast<size_t>(task)],
     scratch.partials.data(),
     scratch.per_thread[static_cast<size_t>(thread)].data());
  });
  if (scratch.merges.empty()) return;
  pool.parallel_for(static_cast<int64_t>(scratch.merges.size()), [&](int64_t task, int thread) {
    HWY_DYNAMIC_DISPATCH(merge_segments)
    (args,
     step,
     scratch.merges[static_cast<size_t>(task)],
     scratch.partials.data(),
     scratch.per_thread[static_cast<size_t>(thread)].data());
  });
}

}  // namespace cpu
}  // namespace headwater
#endif  // HWY_ONCE
