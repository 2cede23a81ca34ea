// What the attention kernels share (attention_cuda.cu): their arguments, a running softmax, and the
// end of a row. Device code.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/attention/paged_kv_cuda.cuh"
#include "kernels/base/elements_cuda.cuh"
#include "kernels/ops.h"

namespace headwater::cuda {

struct Attention {
  int32_t layer, num_heads, num_kv_heads, group, head_dim;  // group: query heads of a KV head
  float scale, softcap;
  int32_t step_rows;                                 // of the whole step
  int32_t first_row, num_rows, first_seq, num_seqs;  // that are attended
  int32_t position_bound;                            // 0: not known
  bool single_rows;  // a tile holds heads of one row; otherwise of consecutive rows of a sequence
  bool selects;
  const int32_t *positions, *row_seq, *row_begin;
  PageList pages;
  PageSelection selection;
  VirtualTokens virtuals;  // begin == null: none
  Activations q, out;
  float* lse;  // may be null
  int64_t lse_stride;
  bool merges;      // something stands for tokens outside the pages
  float* partials;  // [row, head, segment][largest, sum, values[head_dim]]; null: nothing is split
  int32_t max_segments;
  int32_t split_tiles;  // of keys, at least, that are worth a block
  int32_t* arrived;     // zeros, one for the blocks that split a list of keys: the last merges

  __host__ __device__ int32_t end_row() const { return first_row + num_rows; }
  __device__ float logit(float product) const {
    const float x = scale * product;
    return softcap > 0 ? softcap * tanhf(x / softcap) : x;
  }
  __device__ float* partial(int32_t row, int32_t head, int32_t segment) const {
    return partials + ((int64_t{row} * num_heads + head) * max_segments + segment) * (head_dim + 2);
  }
};

// The queries of a block: `count` of one sequence and KV head, consecutive in [row, head in group].
struct Tile {
  int32_t seq, count;
  int64_t first;
};

__device__ inline Tile find_tile(const Attention& a, int32_t tile, int32_t tile_queries) {
  if (a.single_rows) {
    const int32_t per_row = (a.group + tile_queries - 1) / tile_queries;
    const int32_t row = a.first_row + tile / per_row;
    const int32_t begin = tile % per_row * tile_queries;
    return {a.row_seq[row], min(tile_queries, a.group - begin), int64_t{row} * a.group + begin};
  }
  for (int32_t seq = a.first_seq; seq < a.first_seq + a.num_seqs; ++seq) {
    const int32_t begin = a.row_begin[seq];
    const int32_t queries = (a.row_begin[seq + 1] - begin) * a.group;
    const int32_t tiles = (queries + tile_queries - 1) / tile_queries;
    if (tile < tiles)
      return {seq,
              min(tile_queries, queries - tile * tile_queries),
              int64_t{begin} * a.group + tile * tile_queries};
    tile -= tiles;
  }
  return {0, 0, 0};  // the grid is an upper bound
}

// Which tiles of keys a tile of queries visits, by ordinal: those of the sinks, then those of the
// window; where shards stay, all of them, and `visible` says which.
struct KeyTiles {
  int32_t sinks, first, count;
  __device__ KeyTiles(const KvGroupShape& group, int32_t start, int32_t end, int32_t tile) {
    first = group.shard_stride > 0 ? 0 : start / tile;
    sinks = min((group.sink_tokens + tile - 1) / tile, first);
    count = sinks + (end + tile - 1) / tile - first;
  }
  __device__ int32_t tile(int32_t ordinal) const {
    return ordinal < sinks ? ordinal : first + ordinal - sinks;
  }
  __device__ bool visible(const KvGroupShape& group,
                          int32_t ordinal,
                          int32_t start,
                          int32_t tokens) const {
    if (group.shard_stride == 0) return true;
    const int32_t base = tile(ordinal) * tokens;
    if (base + tokens > start) return true;
    for (int32_t key = base; key < base + tokens; key += 16)
      if (group.permanent(key)) return true;
    return group.permanent(base + tokens - 1);
  }
};

// A softmax over some keys, of one query, across a warp: lane l has the values l, l + 32, ...
template <int kChunks>
struct State {
  float largest, sum;
  float values[kChunks];

  __device__ void clear() {
    largest = -INFINITY;
    sum = 0;
    for (float& value : values) value = 0;
  }
  // Fixed roundings: two kernels merge, to the same bits.
  __device__ void merge(const State& from) {
    if (from.largest == -INFINITY) return;
    const float top = fmaxf(largest, from.largest);
    const float mine = expf(largest - top), theirs = expf(from.largest - top);
    sum = fmaf(from.sum, theirs, __fmul_rn(sum, mine));
    for (int c = 0; c < kChunks; ++c)
      values[c] = fmaf(from.values[c], theirs, __fmul_rn(values[c], mine));
    largest = top;
  }
};

__device__ inline float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ inline float warp_max(float value) {
  for (int offset = 16; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

// The softmax over all splits of a query: their sums and maxima in parallel, one or two a lane,
// then the values of those that saw something.
template <int kChunks>
__device__ inline State<kChunks> merge_splits(const Attention& a,
                                              int32_t row,
                                              int32_t head,
                                              int32_t splits) {
  const int lane = threadIdx.x % 32;
  float largest[2], weight[2], sum = 0;
  uint32_t seen[2];
  for (int i = 0; i < 2; ++i) {
    const int32_t s = 32 * i + lane;
    largest[i] = s < splits ? a.partial(row, head, s)[0] : -INFINITY;
    seen[i] = __ballot_sync(~0u, largest[i] != -INFINITY);
  }
  State<kChunks> total;
  total.clear();
  total.largest = warp_max(fmaxf(largest[0], largest[1]));
  if (total.largest == -INFINITY) return total;
  for (int i = 0; i < 2; ++i) {
    const int32_t s = 32 * i + lane;
    weight[i] = expf(largest[i] - total.largest);
    if (weight[i] > 0) sum = fmaf(a.partial(row, head, s)[1], weight[i], sum);
  }
  total.sum = warp_sum(sum);
  const int32_t num_seen = seen[1] != 0 ? 64 - __clz(seen[1]) : 32 - __clz(seen[0]);
#pragma unroll 8
  for (int32_t s = 0; s < num_seen; ++s) {
    const float mine = __shfl_sync(~0u, s < 32 ? weight[0] : weight[1], s % 32);
    const float* from = a.partial(row, head, s) + 2;
    for (int c = 0; c < kChunks; ++c)
      if (32 * c + lane < a.head_dim)
        total.values[c] = fmaf(from[32 * c + lane], mine, total.values[c]);
  }
  return total;
}

// What stands for tokens outside the pages, then the output. By one warp.
template <int kChunks>
__device__ inline void finish(const Attention& a,
                              int32_t row,
                              int32_t head,
                              State<kChunks>& total) {
  const int lane = threadIdx.x % 32;
  const int32_t kv_head = head / a.group;
  const int32_t seq = a.row_seq[row];
  const auto add = [&](const float* k, const float* v, float divisor, float bias) {
    State<kChunks> one;
    float product = 0;
    for (int c = 0; c < kChunks; ++c) {
      const int32_t d = 32 * c + lane;
      one.values[c] = d < a.head_dim ? v[d] / divisor : 0.0f;
      if (d < a.head_dim)
        product = fmaf(a.q.get(row, head * a.head_dim + d), k[d] / divisor, product);
    }
    one.largest = a.logit(warp_sum(product)) + bias;
    one.sum = 1.0f;
    total.merge(one);
  };
  const HeadPages pages =
      a.pages.compensates ? HeadPages(a.pages, a.num_kv_heads, a.layer, kv_head, seq) : HeadPages();
  if (a.pages.compensates && pages.group->record_begin >= 0) {
    const KvGroupShape& group = *pages.group;
    const int32_t start = a.pages.window_start[int64_t{pages.group_idx} * a.step_rows + row];
    if (const int32_t folded = start - group.sink_tokens; folded > 0) {
      const float* record = pages.record_at(start / group.block_tokens);
      const auto count = static_cast<float>(folded);
      add(record, record + a.head_dim, count, logf(count));
    }
  }
  if (a.virtuals.begin != nullptr) {
    const int64_t list = int64_t{seq} * a.num_kv_heads + kv_head;
    for (int32_t i = a.virtuals.begin[list]; i < a.virtuals.begin[list + 1]; ++i)
      add(a.virtuals.k + int64_t{i} * a.head_dim,
          a.virtuals.v + int64_t{i} * a.head_dim,
          1.0f,
          a.virtuals.bias[i]);
  }
  for (int c = 0; c < kChunks; ++c) {
    const int32_t d = 32 * c + lane;
    if (d < a.head_dim)
      a.out.put(row, head * a.head_dim + d, total.sum > 0 ? total.values[c] / total.sum : 0.0f);
  }
  if (a.lse != nullptr && lane == 0)
    a.lse[row * a.lse_stride + head] = total.largest + logf(total.sum);
}

}  // namespace headwater::cuda
