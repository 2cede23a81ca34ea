// Pages as the GPU's kernels see them: K of a page is [page_tokens, head_dim], V behind it
// likewise, as in RefOps. Rows are 16-byte aligned: head_dim is a multiple of 16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/attention/paged_kv.h"

namespace headwater::cuda {

// One head of one sequence: where its tokens lie.
struct HeadPages {
  std::byte* arena;
  const KvGroupShape* group;
  const int32_t* table;  // [logical page, head slot]
  int32_t group_idx, slot;

  HeadPages() = default;
  __device__ HeadPages(
      const PageList& list, int32_t num_kv_heads, int32_t layer, int32_t kv_head, int32_t seq)
      : arena(list.arena) {
    const KvHeadSlot head = list.heads[layer * num_kv_heads + kv_head];
    group_idx = head.group;
    slot = head.slot;
    group = list.groups + group_idx;
    table = list.tables + list.table_begin[int64_t{seq} * list.num_groups + group_idx];
  }

  // Byte offset of the token's K in the arena; its V lies group->page.k_bytes() behind.
  __device__ int64_t token_at(int32_t position) const {
    const PageShape& page = group->page;
    const PageId id = table[int64_t{position / page.page_tokens} * group->num_heads + slot];
    return id * kPageGranuleBytes +
           int64_t{position % page.page_tokens} * page.head_dim * dtype_bytes(page.format);
  }
  __device__ float* record_at(int32_t block) const {  // K sums, then V sums: [2, head_dim]
    const PageId id = table[group->record_begin + int64_t{block} * group->num_heads + slot];
    return reinterpret_cast<float*>(arena + id * kPageGranuleBytes);
  }
};

// Elements index ... index + 3 of a row, index a multiple of four.
__device__ inline void store_kv4(std::byte* base, DType format, int32_t index, float4 v) {
  const auto store = [&](auto low, auto high) {
    auto* to = reinterpret_cast<decltype(low)*>(base) + index / 2;
    to[0] = low;
    to[1] = high;
  };
  switch (format) {
    case DType::kF32:
      reinterpret_cast<float4*>(base)[index / 4] = v;
      return;
    case DType::kF16:
      return store(__floats2half2_rn(v.x, v.y), __floats2half2_rn(v.z, v.w));
    case DType::kBF16:
      return store(__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w));
  }
}

// Elements index ... index + 7 of a row, index a multiple of eight.
__device__ inline void load_kv8(const std::byte* base, DType format, int32_t index, float* out) {
  if (format == DType::kF32) {
    const auto* from = reinterpret_cast<const float4*>(base) + index / 4;
    reinterpret_cast<float4*>(out)[0] = from[0];
    reinterpret_cast<float4*>(out)[1] = from[1];
    return;
  }
  const uint4 words = reinterpret_cast<const uint4*>(base)[index / 8];
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
  for (int i = 0; i < 4; ++i) {
    const auto low = static_cast<uint16_t>(w[i]);
    const auto high = static_cast<uint16_t>(w[i] >> 16);
    const bool half = format == DType::kF16;
    out[2 * i] = half ? __half2float(__ushort_as_half(low)) : __uint_as_float(w[i] << 16);
    out[2 * i + 1] =
        half ? __half2float(__ushort_as_half(high)) : __uint_as_float(w[i] & 0xFFFF0000u);
  }
}

}  // namespace headwater::cuda
