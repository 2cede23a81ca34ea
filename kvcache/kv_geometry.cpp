#include "kvcache/kv_geometry.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace headwater::kv {

KvGeometry::KvGeometry(int32_t num_layers,
                       int32_t num_kv_heads,
                       std::span<const RetentionRule> rules,
                       const PageShape& page)
    : num_layers_(num_layers), num_kv_heads_(num_kv_heads), page_tokens_(page.page_tokens) {
  HW_CHECK(static_cast<int64_t>(rules.size()) == int64_t{num_layers} * num_kv_heads,
           "one rule per head",
           rules.size());
  for (RetentionRule rule : rules) {
    HW_CHECK(rule.block_tokens > 0 && rule.growth_ppm >= 0 && rule.growth_ppm <= rule.kPpm,
             "a rule's block and growth",
             rule.block_tokens,
             rule.growth_ppm);
    HW_CHECK(rule.layer_window == 0 || (rule.layer_window > 0 && rule.sink_tokens == 0 &&
                                        rule.shard_stride == 0 && !rule.compensate),
             "a layer with a window keeps nothing outside of it",
             rule.layer_window);
    if (rule.compensate) {
      HW_CHECK(rule.shard_stride == 0 && !rule.keeps_all() && rule.recent_tokens > 1,
               "a head that compensates has a window and no shard");
      rule.sink_tokens = pages_for(rule.sink_tokens) * page_tokens_;
      rule.block_tokens = pages_for(rule.block_tokens) * page_tokens_;
    }
    auto group = std::find_if(
        groups_.begin(), groups_.end(), [&](const KvGroup& g) { return g.rule == rule; });
    if (group == groups_.end()) group = groups_.insert(group, KvGroup{rule, page, 0});
    heads_.push_back({static_cast<int32_t>(group - groups_.begin()), group->num_heads++});
  }
}

bool KvGeometry::keeps_page(int32_t group, int32_t page, int32_t window_start) const {
  const RetentionRule& rule = groups_[static_cast<size_t>(group)].rule;
  const int32_t first = page * page_tokens_;
  const int32_t end = first + page_tokens_;
  if (end > window_start || first < rule.sink_tokens) return true;
  if (rule.shard_stride == 0) return false;
  for (int32_t block = first / rule.block_tokens; block * rule.block_tokens < end; ++block)
    if ((block + rule.shard_phase) % rule.shard_stride == 0) return true;
  return false;
}

int64_t KvGeometry::group_bytes(int32_t group, int64_t num_tokens, int32_t window_start) const {
  const KvGroup& g = groups_[static_cast<size_t>(group)];
  const int32_t pages = pages_for(num_tokens);
  // Of page rows [0, end).
  const auto bytes_below = [&](int64_t end) {
    int64_t bytes = end * g.num_heads * g.page.page_bytes();
    if (g.rule.compensate && end > 0)
      bytes += (end - 1) * page_tokens_ / g.rule.block_tokens * g.num_heads * record_bytes(g.page);
    return bytes;
  };
  const int32_t start = window_start / page_tokens_;
  const int32_t sinks = std::min(pages_for(g.rule.sink_tokens), start);
  int64_t bytes = bytes_below(pages) - bytes_below(start) + bytes_below(sinks);
  for (int32_t page = sinks; g.rule.shard_stride > 0 && page < start; ++page)
    if (keeps_page(group, page, start * page_tokens_)) bytes += g.row_bytes(page);
  return bytes;
}

int64_t KvGeometry::group_bytes_for(int32_t group,
                                    int64_t num_tokens,
                                    bool dense,
                                    int32_t kept_tokens) const {
  const RetentionRule& rule = groups_[static_cast<size_t>(group)].rule;
  const auto next = static_cast<int32_t>(num_tokens);
  return group_bytes(
      group, num_tokens, dense ? rule.layer_start(next) : rule.window_start(next, kept_tokens));
}

int64_t KvGeometry::bytes_for(int64_t num_tokens, bool dense, int32_t kept_tokens) const {
  int64_t bytes = 0;
  for (int32_t g = 0; g < num_groups(); ++g)
    bytes += group_bytes_for(g, num_tokens, dense, kept_tokens);
  return bytes;
}

int64_t KvGeometry::dense_cache_bytes(int64_t num_tokens) const {
  int64_t row_bytes = 0;
  for (const KvGroup& g : groups_) row_bytes += g.num_heads * g.page.page_bytes();
  return pages_for(num_tokens) * row_bytes;
}

int64_t KvGeometry::most_bytes(int64_t num_tokens) const {
  int64_t bytes = 0;
  for (int32_t g = 0; g < num_groups(); ++g) bytes += group_bytes(g, num_tokens, 0);
  return bytes;
}

int64_t KvGeometry::peak_bytes(int64_t num_tokens,
                               const SequenceRules& rules,
                               int32_t max_rows) const {
  // What is kept of tokens, and a step's rows before it drops what it may.
  const auto passing = [&](int64_t tokens, int64_t step, bool dense, int32_t kept_tokens) {
    int64_t bytes = 0;
    for (int32_t g = 0; g < num_groups(); ++g) {
      const int64_t kept = group_bytes_for(g, tokens, dense, kept_tokens);
      bytes += std::min(group_bytes(g, tokens, 0),
                        kept + group_bytes(g, step, 0) + group_bytes(g, 1, 0));
    }
    return bytes;
  };
  const int64_t faithful =
      rules.dense ? num_tokens : std::min<int64_t>(num_tokens, rules.faithful_tokens);
  const int64_t peak = passing(faithful, std::min<int64_t>(max_rows, faithful), true, 0);
  if (num_tokens == faithful) return peak;
  const int64_t step = std::min<int64_t>(max_rows, num_tokens - faithful);
  return std::max(peak, passing(num_tokens, step, false, rules.kept_tokens));
}

int32_t KvGeometry::least_kept_tokens() const {
  int32_t least = 0;
  for (const KvGroup& g : groups_)
    if (!g.rule.keeps_all_seen()) least = std::max(least, g.rule.least_kept_tokens());
  return least;
}

}  // namespace headwater::kv
