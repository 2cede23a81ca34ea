// How CpuOps lays out a page: K as [page_tokens / 16][head_dim][16 tokens], so that sixteen
// logits come out as lanes, V as [page_tokens][head_dim].
#pragma once

#include <cstdint>

#include "kernels/attention/paged_kv.h"
#include "kernels/base/check.h"

namespace headwater::cpu {

constexpr int32_t kGroupTokens = 16;

// One head of one sequence as the step's tables describe it.
struct HeadPages {
  HeadPages(const PageList& list, int32_t layer, int32_t num_kv_heads, int32_t kv_head, int32_t seq)
      : arena(list.arena), slot(list.heads[int64_t{layer} * num_kv_heads + kv_head].slot) {
    group_idx = list.heads[int64_t{layer} * num_kv_heads + kv_head].group;
    group = &list.groups[group_idx];
    table = list.tables + list.table_begin[int64_t{seq} * list.num_groups + group_idx];
  }

  // The page that holds this position; it must be present.
  std::byte* page(int32_t position) const {
    const int32_t logical = position / group->page.page_tokens;
    const PageId id = table[int64_t{logical} * group->num_heads + slot];
    HW_CHECK(id >= 0, "a hole where a position is read or written:", position);
    return arena + id * kPageGranuleBytes;
  }
  // K of the 16 tokens around a position: [head_dim][16].
  std::byte* k_group(int32_t position) const {
    const PageShape& shape = group->page;
    const int64_t in_page = position % shape.page_tokens / kGroupTokens * kGroupTokens;
    return page(position) + in_page * shape.head_dim * dtype_bytes(shape.format);
  }
  // V of one token: [head_dim].
  std::byte* v_token(int32_t position) const {
    const PageShape& shape = group->page;
    const int64_t in_page = position % shape.page_tokens;
    return page(position) + shape.k_bytes() + in_page * shape.head_dim * dtype_bytes(shape.format);
  }

  // Sums of K, then of V: [2][head_dim].
  float* record(int32_t block) const {
    const PageId id = table[group->record_begin + int64_t{block} * group->num_heads + slot];
    HW_CHECK(id >= 0, "a record is read or written that is not there, block", block);
    return reinterpret_cast<float*>(arena + id * kPageGranuleBytes);
  }

  std::byte* arena;
  const KvGroupShape* group;
  const int32_t* table;
  int32_t group_idx;
  int32_t slot;
};

}  // namespace headwater::cpu
