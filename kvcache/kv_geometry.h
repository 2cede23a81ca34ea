// KvGeometry: which heads are paged together, how large a page is, what a token costs.
// Immutable after start-up; any thread. The one place that turns tokens into pages and bytes:
// pool, scheduler, metrics and usage all ask here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/paged_kv.h"

namespace headwater::kv {

// What a head keeps, as a function of the position alone, so that chunking, preemption and prefix
// reuse cannot change it: the first sink_tokens positions, the latest recent(N) of the N so far,
// and, of the rest, the blocks of its shard. The methods are rows of numbers:
//   StreamingLLM, DuoAttention   sinks, recent
//   RazorAttention               sinks, recent = S0, growth = 1/C, blocks, compensate
//   MoA                          sinks, recent = least, growth = beta, offset = alpha
//   S2-Attention                 recent, blocks, shard stride and phase
// A layer of the model may itself see a window only. That is no method's choice: nothing lifts it,
// and what lies behind it is not missed.
struct RetentionRule {
  static constexpr int32_t kKeepAll = -1;
  static constexpr int32_t kPpm = 1'000'000;
  int32_t sink_tokens = 0;
  int32_t recent_tokens = kKeepAll;  // the least recent(N)
  int32_t growth_ppm = 0;            // recent(N) = max(recent_tokens,
  int32_t growth_offset = 0;  //     growth_offset + ceil(N * growth_ppm / 10^6)); at most 10^6
  int32_t block_tokens = 1;   // the window begins at a multiple of it (rounded down)
  int32_t shard_stride = 0;   // > 0: block b stays if (b + shard_phase) % shard_stride == 0
  int32_t shard_phase = 0;
  bool compensate = false;   // what is dropped is seen as one token, its mean, of its full weight
  int32_t layer_window = 0;  // > 0: the layer sees the latest layer_window positions, no others

  // Drops nothing that the model would look at.
  bool keeps_all_seen() const { return recent_tokens == kKeepAll; }
  // Drops nothing.
  bool keeps_all() const { return keeps_all_seen() && layer_window == 0; }
  // First position that the layer of the row at `position` sees.
  int32_t layer_start(int32_t position) const {
    return layer_window > 0 ? std::max(0, position + 1 - layer_window) : 0;
  }
  // kept_tokens, here and below: a sequence's own bound on what the head keeps (SequenceRules); 0 =
  // none.
  int64_t recent(int64_t num_tokens, int32_t kept_tokens = 0) const {
    const int64_t grown = growth_offset + (num_tokens * growth_ppm + kPpm - 1) / kPpm;
    const int64_t own = std::max<int64_t>(recent_tokens, growth_ppm > 0 ? grown : 0);
    if (kept_tokens == 0) return own;
    // The window begins up to block_tokens - 1 before the latest recent(N).
    return std::min<int64_t>(own, std::max(2, kept_tokens - sink_tokens - (block_tokens - 1)));
  }
  // The least kept_tokens that recent() can honour.
  int32_t least_kept_tokens() const { return sink_tokens + block_tokens + 1; }
  // First position behind the sinks that the row at `position` sees; never moves back, since
  // recent(N) grows by at most one per token.
  int32_t window_start(int32_t position, int32_t kept_tokens = 0) const {
    if (keeps_all_seen()) return layer_start(position);
    const int64_t start =
        std::max<int64_t>(0, position + 1 - recent(int64_t{position} + 1, kept_tokens));
    return std::max(static_cast<int32_t>(start / block_tokens * block_tokens),
                    layer_start(position));
  }
  // Stays whatever the window: a sink or of the shard.
  bool permanent(int32_t position) const {
    return position < sink_tokens ||
           (shard_stride > 0 && (position / block_tokens + shard_phase) % shard_stride == 0);
  }
  bool operator==(const RetentionRule&) const = default;
};

// A group: the heads that share one rule and one page class. They are allocated, shared and freed
// in step, so host bookkeeping is per group.
//
// Heads that compensate have a **record** per block beside their pages: the sums of K and V of all
// that lies before the block (fold_kv in kernels/ops.h). It belongs to the row of the block's first
// page and shares its fate, so whoever holds the first page of a window holds its compensation.
struct KvGroup {
  RetentionRule rule;
  PageShape page;
  int32_t num_heads = 0;

  bool has_record(int32_t page_idx) const {
    return rule.compensate && page_idx > 0 && page_idx * page.page_tokens % rule.block_tokens == 0;
  }
  // Of a page row: one page per head, and its records if it opens a block.
  int64_t row_bytes(int32_t page_idx) const {
    return num_heads * (page.page_bytes() + (has_record(page_idx) ? record_bytes(page) : 0));
  }
};

// How one sequence uses its pages.
struct SequenceRules {
  bool dense = false;           // keep all that its layer sees, whatever a head's rule says
  int32_t faithful_tokens = 0;  // rows below it see (and so hold) all that their layers do:
                                // faithful prefill; 0 if dense
  bool share_prefix = true;     // look up and publish
  int32_t key_space = 0;        // sequences of another one have other K and V of the same tokens
  int32_t kept_tokens = 0;      // what a head that drops tokens keeps at most, of those behind
                                // faithful_tokens; 0 = by its rule alone
};

class KvGeometry {
 public:
  // rules: [num_layers, num_kv_heads]; heads with equal rules become one group. Where heads
  // compensate, sinks and blocks are rounded up to whole pages, so that only whole pages fold.
  KvGeometry(int32_t num_layers,
             int32_t num_kv_heads,
             std::span<const RetentionRule> rules,
             const PageShape& page);

  int32_t num_layers() const { return num_layers_; }
  int32_t num_kv_heads() const { return num_kv_heads_; }
  int32_t num_heads() const { return num_layers_ * num_kv_heads_; }
  int32_t page_tokens() const { return page_tokens_; }
  std::span<const KvGroup> groups() const { return groups_; }
  int32_t num_groups() const { return static_cast<int32_t>(groups_.size()); }
  std::span<const KvHeadSlot> heads() const { return heads_; }  // [num_layers, num_kv_heads]

  int32_t pages_for(int64_t num_tokens) const {
    return static_cast<int32_t>((num_tokens + page_tokens_ - 1) / page_tokens_);
  }
  // Whether a row that sees what is at or behind window_start needs this page.
  bool keeps_page(int32_t group, int32_t page, int32_t window_start) const;
  // Bytes that a group holds of num_tokens tokens once everything it may drop is dropped (dense:
  // all that its layers see stays), records included.
  int64_t group_bytes_for(int32_t group,
                          int64_t num_tokens,
                          bool dense,
                          int32_t kept_tokens = 0) const;
  // Of all heads, for one sequence of num_tokens.
  int64_t bytes_for(int64_t num_tokens, bool dense, int32_t kept_tokens = 0) const;
  // What a cache that knows neither policies nor windows would hold: every token, no records.
  int64_t dense_cache_bytes(int64_t num_tokens) const;
  // The most that a sequence holds on its way to num_tokens in steps of at most max_rows: the dense
  // peak of a faithful prompt, the passing peak of a window.
  int64_t peak_bytes(int64_t num_tokens, const SequenceRules& rules, int32_t max_rows) const;
  // Of all heads if nothing is ever dropped, records included: no sequence holds more.
  int64_t most_bytes(int64_t num_tokens) const;
  // The least kept_tokens of a sequence that every head can honour; 0: no head drops tokens.
  int32_t least_kept_tokens() const;

 private:
  // Of a group's tokens from window_start on, and the ones that stay whatever the window.
  int64_t group_bytes(int32_t group, int64_t num_tokens, int32_t window_start) const;

  int32_t num_layers_;
  int32_t num_kv_heads_;
  int32_t page_tokens_;
  std::vector<KvGroup> groups_;
  std::vector<KvHeadSlot> heads_;
};

}  // namespace headwater::kv
