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
  for (const RetentionRule& rule : rules) {
    auto group = std::find_if(
        groups_.begin(), groups_.end(), [&](const KvGroup& g) { return g.rule == rule; });
    if (group == groups_.end()) group = groups_.insert(group, KvGroup{rule, page, 0});
    heads_.push_back({static_cast<int32_t>(group - groups_.begin()), group->num_heads++});
  }
}

int32_t KvGeometry::kept_pages(int32_t group, int64_t num_tokens, bool dense) const {
  const RetentionRule& rule = groups_[static_cast<size_t>(group)].rule;
  const int32_t all = pages_for(num_tokens);
  if (dense || num_tokens == 0) return all;
  const int32_t first_window_page =
      rule.window_start(static_cast<int32_t>(num_tokens)) / page_tokens_;
  return all - std::max(0, first_window_page - pages_for(rule.sink_tokens));
}

int64_t KvGeometry::bytes_for(int64_t num_tokens, bool dense) const {
  int64_t bytes = 0;
  for (int32_t g = 0; g < num_groups(); ++g)
    bytes +=
        kept_pages(g, num_tokens, dense) * groups_[static_cast<size_t>(g)].bytes_per_page_row();
  return bytes;
}

}  // namespace headwater::kv
