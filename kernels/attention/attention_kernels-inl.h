// Per-target header: one task of paged attention. Query rows are (token, head of the group) pairs.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/paged_kv_cpu.h"

#ifndef HEADWATER_ATTENTION_KERNELS_SHARED
#define HEADWATER_ATTENTION_KERNELS_SHARED
namespace headwater::cpu {

constexpr int32_t kKeys = 64;  // positions of a block
constexpr int32_t kSegmentBlocks = kSegment / kKeys;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// State of one query row: 16 partial sums of the weights, the largest logit (padded to 16), the
// weighted sum of values.
constexpr int64_t row_state_floats(int64_t head_dim) { return 32 + head_dim; }

// Scratch of one task: keys and values of a block as fp32, then per row the scaled query, a block
// of logits, the state of the segment and the merged state.
constexpr int64_t task_floats(int64_t rows, int64_t head_dim) {
  return 2 * kKeys * head_dim + rows * (head_dim + kKeys + 2 * row_state_floats(head_dim));
}

struct RowState {
  float* sums;     // [16]
  float* largest;  // [1]
  float* values;   // [head_dim]
};
inline RowState row_state(float* states, int64_t row, int64_t head_dim) {
  float* p = states + row * row_state_floats(head_dim);
  return {p, p + 16, p + 32};
}
inline void reset(const RowState& state, int64_t head_dim) {
  std::fill_n(state.sums, 16, 0.0f);
  *state.largest = kMinusInfinity;
  std::fill_n(state.values, head_dim, 0.0f);
}

// Bits below count, of a block of 64.
inline uint64_t bits_below(int64_t count) {
  if (count <= 0) return 0;
  return count >= kKeys ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// What one query token sees.
struct TokenView {
  int32_t position = 0;
  int32_t window_start = 0;
  const KvGroupShape* group = nullptr;
  int32_t page_tokens = 0;
  bool selects = false;
  const int32_t* page = nullptr;  // next entry of the selection
  const int32_t* page_end = nullptr;
  const float* bias = nullptr;  // beside page; null: none

  // First block at or after `block` that may hold something visible.
  int64_t next_block(int64_t block) const {
    if (selects) {
      const int32_t* p =
          std::lower_bound(page, page_end, static_cast<int32_t>(block * kKeys / page_tokens));
      if (p == page_end) return std::numeric_limits<int64_t>::max();
      block = std::max(block, int64_t{*p} * page_tokens / kKeys);
    }
    if (block * kKeys < group->sink_tokens) return block;
    if (group->shard_stride == 0) return std::max<int64_t>(block, window_start / kKeys);
    int64_t shard = block * kKeys / group->block_tokens;
    while ((shard + group->shard_phase) % group->shard_stride != 0) ++shard;
    return std::max(block, std::min<int64_t>(shard * group->block_tokens, window_start) / kKeys);
  }
  // Those of a block that stay visible whatever the window.
  uint64_t permanent(int64_t first) const {
    uint64_t bits = bits_below(group->sink_tokens - first);
    if (group->shard_stride == 0) return bits;
    for (int64_t shard = first / group->block_tokens; shard * group->block_tokens < first + kKeys;
         ++shard) {
      if ((shard + group->shard_phase) % group->shard_stride != 0) continue;
      const int64_t begin = shard * group->block_tokens - first;
      bits |= bits_below(begin + group->block_tokens) & ~bits_below(begin);
    }
    return bits;
  }
  // Visible positions of a block; fills the bias of its 16-token groups. Blocks must not go back.
  uint64_t visible(int64_t block, float group_bias[4]) {
    const int64_t first = block * kKeys;
    uint64_t mask =
        bits_below(position + 1 - first) & (permanent(first) | ~bits_below(window_start - first));
    std::fill_n(group_bias, 4, 0.0f);
    if (!selects) return mask;
    uint64_t selected = 0;
    const int32_t* p = std::lower_bound(page, page_end, static_cast<int32_t>(first / page_tokens));
    if (bias != nullptr) bias += p - page;
    page = p;
    for (; p != page_end && int64_t{*p} * page_tokens < first + kKeys; ++p) {
      const int64_t begin = int64_t{*p} * page_tokens - first;
      const uint64_t bits = bits_below(begin + page_tokens) & ~bits_below(begin);
      selected |= bits;
      if (bias == nullptr) continue;
      for (int g = 0; g < 4; ++g)
        if (bits >> (16 * g) & 1) group_bias[g] = bias[p - page];
    }
    return mask & selected;
  }
};

}  // namespace headwater::cpu
#endif

#if defined(HEADWATER_ATTENTION_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWATER_ATTENTION_KERNELS_INL_H_
#undef HEADWATER_ATTENTION_KERNELS_INL_H_
#else
#define HEADWATER_ATTENTION_KERNELS_INL_H_
#endif

#include "kernels/base/lanes16-inl.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

using cpu::AttentionTask;
using cpu::kKeys;
using cpu::RowState;
using cpu::TokenView;

HWY_INLINE F32x16 load_kv(const std::byte* p, DType format) {
  switch (format) {
    case DType::kF16:
      return load_f16(reinterpret_cast<const uint16_t*>(p));
    case DType::kBF16:
      return load_bf16(reinterpret_cast<const uint16_t*>(p));
    default:
      return load(reinterpret_cast<const float*>(p));
  }
}

// Sixteen-lane vectors per row that a pass accumulates: as many as the registers hold, so that
// enough independent sums hide the latency of the multiply-add.
template <int kRows>
constexpr int kPassVectors = kRegs == 1 || kRows == 1 ? 4 : (kRows == 2 ? 2 : 1);

// Where the keys and values of a block come from. Widened to fp32 once for the many rows of a
// prefill tile: keys [head_dim][64], values [64][head_dim].
struct WideBlock {
  const float* k;
  const float* v;
  int32_t head_dim;

  HWY_INLINE bool has_group(int) const { return true; }
  HWY_INLINE F32x16 keys(int group, int32_t d) const {
    return load(k + int64_t{d} * kKeys + 16 * group);
  }
  HWY_INLINE F32x16 values(int token, int32_t d) const {
    return load(v + int64_t{token} * head_dim + d);
  }
};

// Straight from the pages for the few rows of a decode: each element is read and widened once.
template <DType kFormat>
struct PageBlock {
  const std::byte* k[4];  // of each group of 16 tokens; null: nothing in it is seen
  const std::byte* v[4];
  int32_t head_dim;

  HWY_INLINE bool has_group(int group) const { return k[group] != nullptr; }
  HWY_INLINE F32x16 keys(int group, int32_t d) const {
    return load_kv(k[group] + int64_t{d} * 16 * dtype_bytes(kFormat), kFormat);
  }
  HWY_INLINE F32x16 values(int token, int32_t d) const {
    return load_kv(v[token / 16] + (int64_t{token % 16} * head_dim + d) * dtype_bytes(kFormat),
                   kFormat);
  }
};

// Pointers to the groups of a block that somebody sees; the others may be holes.
template <DType kFormat>
PageBlock<kFormat> page_block(const cpu::HeadPages& pages, int64_t block, uint64_t seen) {
  PageBlock<kFormat> source;
  source.head_dim = pages.group->page.head_dim;
  for (int g = 0; g < 4; ++g) {
    const auto position = static_cast<int32_t>(block * kKeys + 16 * g);
    const bool visible = (seen >> (16 * g) & 0xFFFF) != 0;
    source.k[g] = visible ? pages.k_group(position) : nullptr;
    source.v[g] = visible ? pages.v_token(position) : nullptr;
  }
  return source;
}

// What no row of the task sees is not read.
template <DType kFormat>
WideBlock widen_block(const PageBlock<kFormat>& pages, uint64_t seen, float* k, float* v) {
  const int32_t head_dim = pages.head_dim;
  for (int g = 0; g < 4; ++g)
    for (int32_t d = 0; pages.has_group(g) && d < head_dim; ++d)
      store(pages.keys(g, d), k + int64_t{d} * kKeys + 16 * g);
  for (uint64_t left = seen; left != 0; left &= left - 1) {
    const int t = std::countr_zero(left);
    for (int32_t d = 0; d < head_dim; d += 16)
      store(pages.values(t, d), v + int64_t{t} * head_dim + d);
  }
  return {k, v, head_dim};
}

// logits[r][64] = q[r] . k for kRows consecutive rows.
template <int kRows, typename Block>
HWY_NOINLINE void multiply_keys(const float* q, const Block& block, float* logits) {
  constexpr int kVectors = kPassVectors<kRows>;
  const int32_t head_dim = block.head_dim;
  for (int first = 0; first < 4; first += kVectors) {
    bool any = false;
    for (int g = 0; g < kVectors; ++g) any = any || block.has_group(first + g);
    if (!any) continue;  // masked by the softmax
    F32x16 acc[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int g = 0; g < kVectors; ++g) acc[r][g] = splat(0.0f);
    for (int32_t d = 0; d < head_dim; ++d) {
      F32x16 keys[kVectors];
#pragma GCC unroll 4
      for (int g = 0; g < kVectors; ++g)
        keys[g] = block.has_group(first + g) ? block.keys(first + g, d) : splat(0.0f);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F32x16 value = splat(q[int64_t{r} * head_dim + d]);
#pragma GCC unroll 4
        for (int g = 0; g < kVectors; ++g) acc[r][g] = fma(value, keys[g], acc[r][g]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int g = 0; g < kVectors; ++g) store(acc[r][g], logits + r * kKeys + 16 * (first + g));
  }
}

// values[r] += sum over set bits t of seen, in order, of weights[r][t] * v[t].
template <int kRows, int kVectors, typename Block>
HWY_INLINE void add_value_columns(const float* weights,
                                  const Block& block,
                                  int32_t first,
                                  uint64_t seen,
                                  float* values,
                                  int64_t value_stride) {
  F32x16 acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) acc[r][i] = load(values + r * value_stride + first + 16 * i);
  const auto add = [&](int t) HWY_ATTR {
    F32x16 token[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) token[i] = block.values(t, first + 16 * i);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32x16 weight = splat(weights[r * kKeys + t]);
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) acc[r][i] = fma(weight, token[i], acc[r][i]);
    }
  };
  if (seen == ~uint64_t{0}) {
    for (int t = 0; t < kKeys; ++t) add(t);
  } else {
    for (; seen != 0; seen &= seen - 1) add(std::countr_zero(seen));
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) store(acc[r][i], values + r * value_stride + first + 16 * i);
}

template <int kRows, typename Block>
HWY_NOINLINE void add_values(
    const float* weights, const Block& block, uint64_t seen, float* values, int64_t value_stride) {
  constexpr int kVectors = kPassVectors<kRows>;
  constexpr int32_t kWidth = 16 * kVectors;
  int32_t d = 0;
  for (; d + kWidth <= block.head_dim; d += kWidth)
    add_value_columns<kRows, kVectors>(weights, block, d, seen, values, value_stride);
  for (; d < block.head_dim; d += 16)
    add_value_columns<kRows, 1>(weights, block, d, seen, values, value_stride);
}

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
