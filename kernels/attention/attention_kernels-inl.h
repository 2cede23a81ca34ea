// Per-target header: one task of paged attention. Query rows are (token, head of the group) pairs.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/paged_kv_cpu.h"

#if defined(HEADWATER_ATTENTION_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWATER_ATTENTION_KERNELS_INL_H_
#undef HEADWATER_ATTENTION_KERNELS_INL_H_
#else
#define HEADWATER_ATTENTION_KERNELS_INL_H_
#endif

#include "kernels/attention/attention_passes-inl.h"
#include "kernels/base/lanes16-inl.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

using cpu::AttentionTask;
using cpu::kKeys;
using cpu::RowState;
using cpu::TokenView;

// Logits of one row -> weights; rescales the row's state. bias: 64 floats or null.
HWY_INLINE void update_softmax(float* logits,
                               uint64_t seen,
                               const float* bias,
                               float softcap,
                               int32_t head_dim,
                               const RowState& state) {
  F32x16 x[4];
  const F32x16 nothing = splat(cpu::kMinusInfinity);
  F32x16 row_max = nothing;
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    x[g] = load(logits + 16 * g);
    if (softcap > 0) {  // tanh(y) = 1 - 2 / (e^2y + 1)
      const F32x16 e = exp(x[g] * splat(2.0f / softcap));
      x[g] = splat(softcap) * (splat(1.0f) - splat(2.0f) / (e + splat(1.0f)));
    }
    if (bias != nullptr) x[g] = x[g] + load(bias + 16 * g);
    x[g] = select(static_cast<uint32_t>(seen >> (16 * g)) & 0xFFFF, x[g], nothing);
    row_max = max(row_max, x[g]);
  }
  const float old_largest = *state.largest;
  const float largest = std::max(old_largest, max_lanes(row_max));
  const F32x16 shift = splat(largest == cpu::kMinusInfinity ? 0.0f : largest);
  F32x16 sums = load(state.sums);
  if (largest != old_largest) {
    const F32x16 scale = exp(splat(old_largest) - shift);
    sums = sums * scale;
    for (int32_t d = 0; d < head_dim; d += 16)
      store(load(state.values + d) * scale, state.values + d);
    *state.largest = largest;
  }
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const F32x16 weight = exp(x[g] - shift);
    sums = sums + weight;
    store(weight, logits + 16 * g);
  }
  store(sums, state.sums);
}

// to = to and from, by log-sum-exp. A segment in which nothing was seen changes nothing.
inline void merge(const RowState& from, int32_t head_dim, const RowState& to) {
  if (*from.largest == cpu::kMinusInfinity) return;
  const float largest = std::max(*from.largest, *to.largest);
  const F32x16 keep = exp(splat(*to.largest - largest));
  const F32x16 take = exp(splat(*from.largest - largest));
  store(fma(load(from.sums), take, load(to.sums) * keep), to.sums);
  for (int32_t d = 0; d < head_dim; d += 16)
    store(fma(load(from.values + d), take, load(to.values + d) * keep), to.values + d);
  *to.largest = largest;
}

inline void finish_row(const RowState& state, int32_t head_dim, float* out, float* lse) {
  const float total = sum_lanes(load(state.sums));
  if (lse != nullptr) *lse = *state.largest + std::log(total);
  const F32x16 inverse = splat(total > 0 ? 1.0f / total : 0.0f);
  for (int32_t d = 0; d < head_dim; d += 16) store(load(state.values + d) * inverse, out + d);
}

// The rows of one task and where their intermediate results lie.
struct TaskRows {
  int32_t head_dim;
  int32_t group;  // query heads of a token
  int32_t tokens;
  float softcap;
  float *k, *v, *q, *logits, *segment, *merged;

  TaskRows(const AttentionArgs& args, const AttentionTask& task, float* memory)
      : head_dim(args.heads.head_dim),
        group(args.heads.num_heads / args.heads.num_kv_heads),
        tokens(task.end_row - task.first_row),
        softcap(args.softcap) {
    k = memory;
    v = k + int64_t{kKeys} * head_dim;
    q = v + int64_t{kKeys} * head_dim;
    logits = q + rows() * head_dim;
    segment = logits + rows() * kKeys;
    merged = segment + rows() * cpu::row_state_floats(head_dim);
  }
  int64_t rows() const { return int64_t{tokens} * group; }

  void load_queries(const AttentionArgs& args, const AttentionTask& task) const {
    const F32x16 scale = splat(args.scale);
    for (int32_t t = 0; t < tokens; ++t) {
      const float* from =
          args.q.f32_row(task.first_row + t) + int64_t{task.kv_head} * group * head_dim;
      float* to = q + int64_t{t} * group * head_dim;
      for (int32_t d = 0; d < group * head_dim; d += 16) store(load(from + d) * scale, to + d);
    }
  }
  void reset(float* states) const {
    for (int64_t r = 0; r < rows(); ++r) cpu::reset(cpu::row_state(states, r, head_dim), head_dim);
  }
  void merge_segment() const {
    for (int64_t r = 0; r < rows(); ++r)
      merge(cpu::row_state(segment, r, head_dim), head_dim, cpu::row_state(merged, r, head_dim));
  }
};

// Rows [row, row + count) of a block; all see the same keys.
template <typename Block>
inline void attend_rows(const TaskRows& t,
                        const Block& block,
                        int64_t row,
                        int64_t count,
                        uint64_t seen,
                        const float* bias) {
  const int64_t stride = cpu::row_state_floats(t.head_dim);
  const auto run = [&]<int kRows>(std::integral_constant<int, kRows>) HWY_ATTR {
    float* logits = t.logits + row * kKeys;
    multiply_keys<kRows>(t.q + row * t.head_dim, block, logits);
    for (int r = 0; r < kRows; ++r)
      update_softmax(logits + r * kKeys,
                     seen,
                     bias,
                     t.softcap,
                     t.head_dim,
                     cpu::row_state(t.segment, row + r, t.head_dim));
    add_values<kRows>(
        logits, block, seen, cpu::row_state(t.segment, row, t.head_dim).values, stride);
    row += kRows;
  };
  for (const int64_t end = row + count; row < end;) {
    switch (std::min<int64_t>(end - row, 6)) {
      case 6:
        run(std::integral_constant<int, 6>());
        break;
      case 5:
      case 4:
        run(std::integral_constant<int, 4>());
        break;
      case 3:
        run(std::integral_constant<int, 3>());
        break;
      case 2:
        run(std::integral_constant<int, 2>());
        break;
      default:
        run(std::integral_constant<int, 1>());
    }
  }
}

constexpr int32_t kMaxTokens = 48;

// One block for every token of the task.
template <typename Block>
inline void attend_tokens(const TaskRows& t,
                          const Block& block,
                          const uint64_t* seen,
                          const float (*group_bias)[4],
                          const TokenView* views) {
  for (int32_t i = 0; i < t.tokens;) {
    int32_t end = i + 1;  // tokens that see the same keys go together
    const bool biased = views[i].bias != nullptr;
    while (end < t.tokens && seen[end] == seen[i] && !biased && views[end].bias == nullptr) ++end;
    if (seen[i] != 0) {
      alignas(64) float bias[kKeys];
      if (biased)
        for (int32_t key = 0; key < kKeys; ++key) bias[key] = group_bias[i][key / 16];
      attend_rows(t,
                  block,
                  int64_t{i} * t.group,
                  int64_t{end - i} * t.group,
                  seen[i],
                  biased ? bias : nullptr);
    }
    i = end;
  }
}

// Pages of a head lie anywhere: the hardware cannot guess the next ones.
inline void prefetch_block(const cpu::HeadPages& pages, const TokenView& view, int64_t block) {
  constexpr int64_t kLine = 64;
  const auto first = static_cast<int32_t>(block * kKeys);
  const int32_t end = std::min(first + kKeys, view.position + 1);
  for (int32_t p = std::max(first, view.window_start); p < end; p += 16 - p % 16) {
    const std::byte* parts[] = {pages.k_group(p), pages.v_token(p - p % 16)};
    for (const std::byte* part : parts)
      for (int64_t i = 0; i < 16 * pages.group->page.head_dim * 2; i += kLine)
        __builtin_prefetch(part + i, 0, 2);
  }
}

template <DType kFormat>
inline void attend_block(const TaskRows& t,
                         const cpu::HeadPages& pages,
                         int64_t block,
                         TokenView* views) {
  uint64_t seen[kMaxTokens];
  float group_bias[kMaxTokens][4];
  uint64_t any = 0;
  for (int32_t i = 0; i < t.tokens; ++i) {
    seen[i] = views[i].visible(block, group_bias[i]);
    any |= seen[i];
  }
  if (any == 0) return;
  const PageBlock<kFormat> source = page_block<kFormat>(pages, block, any);
  // Few rows are covered by one pass: to widen for later ones would not pay.
  constexpr int64_t kFewRows = kFormat == DType::kF32 ? 0 : 6;
  if (t.rows() <= kFewRows) {
    prefetch_block(pages, views[t.tokens - 1], block + 1);
    attend_tokens(t, source, seen, group_bias, views);
  } else {
    attend_tokens(t, widen_block(source, any, t.k, t.v), seen, group_bias, views);
  }
}

inline void attend_block(const TaskRows& t,
                         const cpu::HeadPages& pages,
                         int64_t block,
                         TokenView* views) {
  switch (pages.group->page.format) {
    case DType::kF16:
      return attend_block<DType::kF16>(t, pages, block, views);
    case DType::kBF16:
      return attend_block<DType::kBF16>(t, pages, block, views);
    default:
      return attend_block<DType::kF32>(t, pages, block, views);
  }
}

inline void attend_virtual(const AttentionArgs& args,
                           const AttentionTask& task,
                           const TaskRows& t) {
  const VirtualTokens& tokens = *args.virtual_tokens;
  const int64_t list = int64_t{task.seq} * args.heads.num_kv_heads + task.kv_head;
  for (int32_t first = tokens.begin[list]; first < tokens.begin[list + 1]; first += kKeys) {
    const int32_t count = std::min(kKeys, tokens.begin[list + 1] - first);
    alignas(64) float bias[kKeys] = {};
    std::copy_n(tokens.bias + first, count, bias);
    for (int32_t i = 0; i < count; ++i) {
      const int64_t from = int64_t{first + i} * t.head_dim;
      for (int32_t d = 0; d < t.head_dim; ++d) t.k[int64_t{d} * kKeys + i] = tokens.k[from + d];
      std::copy_n(tokens.v + from, t.head_dim, t.v + int64_t{i} * t.head_dim);
    }
    attend_rows(t, WideBlock{t.k, t.v, t.head_dim}, 0, t.rows(), cpu::bits_below(count), bias);
  }
}

// What the rows do not see as one token of its full weight. Rows of one window start go together.
inline void attend_folded(const StepView& step,
                          const AttentionTask& task,
                          const cpu::HeadPages& pages,
                          const TaskRows& t) {
  const KvGroupShape& group = *pages.group;
  const int32_t* starts =
      step.pages.window_start + int64_t{pages.group_idx} * step.num_rows + task.first_row;
  for (int32_t i = 0, end = 0; i < t.tokens; i = end) {
    while (end < t.tokens && starts[end] == starts[i]) ++end;
    const int32_t folded = starts[i] - group.sink_tokens;
    if (folded <= 0) continue;
    const float* record = pages.record(starts[i] / group.block_tokens);
    const auto count = static_cast<float>(folded);
    for (int32_t d = 0; d < t.head_dim; ++d) {
      t.k[int64_t{d} * kKeys] = record[d] / count;
      t.v[d] = record[t.head_dim + d] / count;
    }
    alignas(64) float bias[kKeys] = {std::log(count)};
    attend_rows(t,
                WideBlock{t.k, t.v, t.head_dim},
                int64_t{i} * t.group,
                int64_t{end - i} * t.group,
                1,
                bias);
  }
}

// The folded and the virtual tokens as one more segment each, then the results.
inline void finish_task(const AttentionArgs& args,
                        const StepView& step,
                        const AttentionTask& task,
                        const cpu::HeadPages& pages,
                        const TaskRows& t) {
  if (pages.group->record_begin >= 0) {
    t.reset(t.segment);
    attend_folded(step, task, pages, t);
    t.merge_segment();
  }
  if (args.virtual_tokens != nullptr) {
    t.reset(t.segment);
    attend_virtual(args, task, t);
    t.merge_segment();
  }
  for (int64_t r = 0; r < t.rows(); ++r) {
    const int64_t head = int64_t{task.kv_head} * t.group + r % t.group;
    const int64_t row = task.first_row + r / t.group;
    finish_row(cpu::row_state(t.merged, r, t.head_dim),
               t.head_dim,
               args.out.f32_row(row) + head * t.head_dim,
               args.lse.data != nullptr ? args.lse.f32_row(row) + head : nullptr);
  }
}

inline void run_attention_task(const AttentionArgs& args,
                               const StepView& step,
                               const AttentionTask& task,
                               float* partials,
                               float* memory) {
  const cpu::HeadPages pages(
      step.pages, args.layer, args.heads.num_kv_heads, task.kv_head, task.seq);
  TaskRows t(args, task, memory);
  if (task.partial >= 0) t.segment = partials + task.partial;
  t.load_queries(args, task);
  t.reset(t.merged);

  TokenView views[kMaxTokens];
  for (int32_t i = 0; i < t.tokens; ++i) {
    const int32_t row = task.first_row + i;
    TokenView& view = views[i];
    view.position = step.positions[row];
    view.window_start = step.pages.window_start[int64_t{pages.group_idx} * step.num_rows + row];
    view.group = pages.group;
    view.page_tokens = pages.group->page.page_tokens;
    if (const PageSelection* selection = args.selection) {
      const int64_t list =
          int64_t{selection->row_block[row]} * args.heads.num_kv_heads + task.kv_head;
      view.selects = true;
      view.page = selection->pages + selection->begin[list];
      view.page_end = selection->pages + selection->begin[list + 1];
      if (selection->bias != nullptr) view.bias = selection->bias + selection->begin[list];
    }
  }
  const int64_t last_block = views[t.tokens - 1].position / kKeys;
  for (int32_t segment = task.first_segment; segment < task.end_segment; ++segment) {
    if (cpu::hidden_segment(args, step, task.kv_head, task.first_row, segment)) continue;
    const int64_t first_block = int64_t{segment} * cpu::kSegmentBlocks;
    const int64_t end_block = std::min(first_block + cpu::kSegmentBlocks, last_block + 1);
    t.reset(t.segment);
    for (int64_t block = first_block;; ++block) {
      int64_t next = end_block;
      for (int32_t i = 0; i < t.tokens; ++i) next = std::min(next, views[i].next_block(block));
      block = next;
      if (block >= end_block) break;
      attend_block(t, pages, block, views);
    }
    if (task.partial < 0) t.merge_segment();
  }
  if (task.partial < 0) finish_task(args, step, task, pages, t);
}

inline void merge_segments(const AttentionArgs& args,
                           const StepView& step,
                           const AttentionTask& task,
                           float* partials,
                           float* memory) {
  TaskRows t(args, task, memory);
  t.reset(t.merged);
  float* own_segment = t.segment;
  t.segment = partials + task.partial;
  for (int32_t segment = 0; segment < task.end_segment; ++segment) {
    if (cpu::hidden_segment(args, step, task.kv_head, task.first_row, segment)) continue;
    t.merge_segment();
    t.segment += t.rows() * cpu::row_state_floats(t.head_dim);
  }
  t.segment = own_segment;
  t.load_queries(args, task);
  const cpu::HeadPages pages(
      step.pages, args.layer, args.heads.num_kv_heads, task.kv_head, task.seq);
  finish_task(args, step, task, pages, t);
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#endif  // per-target guard
