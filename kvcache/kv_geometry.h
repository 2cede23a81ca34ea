// KvGeometry: which heads are paged together, how large a page is, what a token costs.
// Immutable after start-up; any thread. The one place that turns tokens into pages and bytes:
// pool, scheduler, metrics and usage all ask here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/paged_kv.h"

namespace headwater::kv {

// What a head keeps, as a function of the position alone, so that chunking, preemption and prefix
// reuse cannot change it: the first sink_tokens positions and the latest recent_tokens.
struct RetentionRule {
  static constexpr int32_t kKeepAll = -1;
  int32_t sink_tokens = 0;
  int32_t recent_tokens = kKeepAll;

  bool keeps_all() const { return recent_tokens == kKeepAll; }
  // First position behind the sinks that the row at `position` sees; never moves back.
  int32_t window_start(int32_t position) const {
    if (keeps_all() || position < recent_tokens) return 0;
    return position + 1 - recent_tokens;
  }
  bool operator==(const RetentionRule&) const = default;
};

// A group: the heads that share one rule and one page class. They are allocated, shared and freed
// in step, so host bookkeeping is per group.
struct KvGroup {
  RetentionRule rule;
  PageShape page;
  int32_t num_heads = 0;

  int64_t bytes_per_page_row() const { return num_heads * page.page_bytes(); }
};

class KvGeometry {
 public:
  // rules: [num_layers, num_kv_heads]; heads with equal rules become one group.
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
  // Logical pages that a group holds of num_tokens tokens once everything it may drop is dropped
  // (dense: nothing is).
  int32_t kept_pages(int32_t group, int64_t num_tokens, bool dense) const;
  // Bytes of all heads for one sequence of num_tokens.
  int64_t bytes_for(int64_t num_tokens, bool dense) const;

 private:
  int32_t num_layers_;
  int32_t num_kv_heads_;
  int32_t page_tokens_;
  std::vector<KvGroup> groups_;
  std::vector<KvHeadSlot> heads_;
};

}  // namespace headwater::kv
