// What attention keeps per query row, and which positions a query token sees: shared by the
// instruction sets.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/attention/attention_cpu.h"

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
