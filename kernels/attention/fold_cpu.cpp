#include "kernels/attention/fold_cpu.h"

#include <algorithm>

#include "kernels/attention/paged_kv_cpu.h"

namespace headwater::cpu {
namespace {

template <typename T, float (*widen)(T)>
void add_tokens(const HeadPages& pages, int32_t begin, int32_t end, float* sums) {
  const int32_t head_dim = pages.group->page.head_dim;
  for (int32_t p = begin; p < end; ++p) {
    const auto* k = reinterpret_cast<const T*>(pages.k_group(p)) + p % kGroupTokens;
    const auto* v = reinterpret_cast<const T*>(pages.v_token(p));
    for (int32_t d = 0; d < head_dim; ++d) {
      sums[d] += widen(k[int64_t{d} * kGroupTokens]);
      sums[head_dim + d] += widen(v[d]);
    }
  }
}

float keep_f32(float value) { return value; }

void write_record(const HeadPages& pages, int32_t block) {
  const KvGroupShape& group = *pages.group;
  const int32_t end = block * group.block_tokens;
  const int32_t begin = std::max(end - group.block_tokens, group.sink_tokens);
  const int64_t count = int64_t{2} * group.page.head_dim;
  float* record = pages.record(block);
  std::fill_n(record, count, 0.0f);
  switch (group.page.format) {
    case DType::kF32:
      add_tokens<float, keep_f32>(pages, begin, end, record);
      break;
    case DType::kF16:
      add_tokens<uint16_t, f16_to_f32>(pages, begin, end, record);
      break;
    case DType::kBF16:
      add_tokens<uint16_t, bf16_to_f32>(pages, begin, end, record);
      break;
  }
  if (block == 1) return;
  const float* before = pages.record(block - 1);
  for (int64_t i = 0; i < count; ++i) record[i] = before[i] + record[i];
}

struct Blocks {  // that rows of this step open in one head of one sequence
  HeadPages pages;
  int32_t first, end;
};

}  // namespace

void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step, ThreadPool& pool) {
  const auto opened = [&](int64_t task) {
    const auto seq = static_cast<int32_t>(task / heads.num_kv_heads);
    const auto head = static_cast<int32_t>(task % heads.num_kv_heads);
    const HeadPages pages(step.pages, layer, heads.num_kv_heads, head, seq);
    const int32_t block_tokens = pages.group->block_tokens;
    const int32_t row = step.row_begin[seq];
    const int32_t num_rows = step.row_begin[seq + 1] - row;
    if (num_rows == 0 || pages.group->record_begin < 0) return Blocks{pages, 0, 0};
    const int32_t position = step.positions[row];
    return Blocks{pages,
                  std::max(1, (position + block_tokens - 1) / block_tokens),
                  (position + num_rows - 1) / block_tokens + 1};
  };
  // Most decodes open none, and threads are not woken for nothing.
  const int64_t num_tasks = int64_t{step.num_seqs} * heads.num_kv_heads;
  bool any = false;
  for (int64_t task = 0; task < num_tasks && !any; ++task) {
    const Blocks blocks = opened(task);
    any = blocks.first < blocks.end;
  }
  if (!any) return;
  pool.parallel_for(num_tasks, [&](int64_t task, int) {
    const Blocks blocks = opened(task);
    for (int32_t block = blocks.first; block < blocks.end; ++block)
      write_record(blocks.pages, block);
  });
}

}  // namespace headwater::cpu
