// Paged KV as the kernels see it: every KV head owns its pages. Plain data, shared by all devices.
//
// A page holds page_tokens tokens of K and of V of ONE head, in one format, K first, V right
// behind it, then sidecar bytes. How K and V lie inside their halves is the Ops' own business:
// everybody else moves whole pages. Keys are stored after RoPE at their true positions.
//
//   PageId x kPageGranuleBytes = byte offset of the page in the arena (any size of page)
//   group  = the heads that share one retention rule and format; they are paged in step, so one
//            table row per logical page holds one id per head of the group
//
//   tables + table_begin[seq, group]  ->  ids [logical page, head slot in the group]
//   logical page of a position        =   position / page_tokens
//
// Heads that compensate own a record per block of block_tokens positions, of another page size:
// fp32 sums of K and of V, [2, head_dim], over the positions that are no sinks and lie before the
// block. Its ids follow at   ids + record_begin  ->  [block, head slot]
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace headwater {

using PageId = int32_t;
constexpr PageId kNoPage = -1;  // a hole: dropped or never written
constexpr int64_t kPageGranuleBytes = 256;

// An entry of the page tables that has a new value.
struct TableEntry {
  int64_t offset = 0;  // into the tables
  PageId page = kNoPage;
};

// The page class: fixes a page's size. page_tokens is a multiple of 16.
struct PageShape {
  DType format = DType::kF32;
  int32_t head_dim = 0;
  int32_t page_tokens = 16;
  int32_t sidecar_bytes = 0;

  constexpr int64_t k_bytes() const {
    return int64_t{page_tokens} * head_dim * dtype_bytes(format);
  }
  // Rounded up to the granule.
  int64_t page_bytes() const {
    const int64_t bytes = 2 * k_bytes() + sidecar_bytes;
    return (bytes + kPageGranuleBytes - 1) / kPageGranuleBytes * kPageGranuleBytes;
  }
  bool operator==(const PageShape&) const = default;
};

// Bytes of one head's record of one block.
inline int64_t record_bytes(const PageShape& page) {
  const int64_t bytes = int64_t{2} * page.head_dim * int64_t{sizeof(float)};
  return (bytes + kPageGranuleBytes - 1) / kPageGranuleBytes * kPageGranuleBytes;
}

struct KvGroupShape {
  PageShape page;
  int32_t num_heads = 0;
  int32_t sink_tokens = 0;   // positions below it stay visible whatever the window
  int32_t block_tokens = 1;  // of shards and of records
  int32_t shard_stride =
      0;  // > 0: blocks b with (b + shard_phase) % shard_stride == 0 stay visible
  int32_t shard_phase = 0;
  int64_t record_begin = -1;  // >= 0: the heads compensate

  constexpr bool permanent(int32_t position) const {
    return position < sink_tokens ||
           (shard_stride > 0 && (position / block_tokens + shard_phase) % shard_stride == 0);
  }
};

// Where head (layer, kv head) sits: table entry = ids[page * group.num_heads + slot].
struct KvHeadSlot {
  int32_t group = 0;
  int32_t slot = 0;
};

// What the rows of one step may read, and where they write. Device memory, filled before the step.
// Row r of sequence s sees key position p iff
//     p <= positions[r]  and  (p >= window_start[group, r]  or  group.permanent(p)).
// Where the heads compensate, window_start is a multiple of block_tokens, and the row sees the
// n = window_start - sink_tokens positions it does not see (if n > 0) as one virtual token: their
// mean K and V, with log n added to its logit.
// Every page that holds a visible position is present in the table, and so is the record of the
// block at window_start; others may be holes and are never touched (their bytes may be NaN).
struct PageList {
  std::byte* arena = nullptr;
  const int32_t* tables = nullptr;
  const int64_t* table_begin = nullptr;   // [num_seqs, num_groups] offsets into tables
  const KvGroupShape* groups = nullptr;   // [num_groups]
  const KvHeadSlot* heads = nullptr;      // [num_layers, num_kv_heads]
  const int32_t* window_start = nullptr;  // [num_groups, num_rows]; 0 = everything
  int32_t num_groups = 0;
  bool compensates = false;  // some group has records
  // What the pages of all groups hold, which kernels may be chosen by; kF32 where they differ.
  DType format = DType::kF32;
};

// Optional, one layer: the pages that rows read, as CSR over (query block, kv head). A list
// narrows what is visible above, it never widens it; the page of the row itself must be in it.
struct PageSelection {
  const int32_t* row_block = nullptr;  // [num_rows] query block of each row
  const int32_t* begin = nullptr;      // [num_blocks * num_kv_heads + 1]
  const int32_t* pages = nullptr;      // logical pages, ascending within a list
  const float* bias = nullptr;         // per entry, added to every logit of the page; null = 0
};

// Optional, one layer: virtual tokens, each standing for many (bias = log of how many). Visible to
// every row of the sequence; never masked. CSR over (sequence, kv head).
struct VirtualTokens {
  const int32_t* begin = nullptr;  // [num_seqs * num_kv_heads + 1]
  const float* k = nullptr;        // [num_virtual, head_dim], after RoPE
  const float* v = nullptr;        // [num_virtual, head_dim]
  const float* bias = nullptr;     // [num_virtual], added to the logit
};

}  // namespace headwater
