// Attention in fp32 for every format, selection and rule, and the merge of its segments: hence the
// length.
#include <algorithm>

#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/attention_mma_cuda.cuh"
#include "kernels/attention/attention_state_cuda.cuh"
#include "kernels/attention/attention_wgmma_cuda.cuh"
#include "kernels/attention/paged_kv_cuda.cuh"
#include "kernels/base/check.h"
#include "kernels/base/launch_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int32_t kTileTokens = 32;  // of keys: one per lane
constexpr int32_t kPad = 4;          // floats behind a key row in shared memory: no bank conflicts
constexpr int64_t kScratchBytes = int64_t{160} << 20;  // 8,192 rows of 32 heads of 128 fit
constexpr int32_t kBlocksPerProcessor = 4;             // wanted when keys are split over blocks
constexpr int32_t kMergeWarps = 4;

// The first position from p on that a row whose window starts at `start` may see.
__device__ int32_t next_visible(const KvGroupShape& group, int32_t start, int32_t p) {
  if (p >= start || group.permanent(p)) return p;
  if (group.shard_stride == 0) return start;
  const int32_t block = p / group.block_tokens + 1;
  const int32_t ahead = (block + group.shard_phase) % group.shard_stride;
  const int32_t shard = block + (ahead == 0 ? 0 : group.shard_stride - ahead);
  return static_cast<int32_t>(min(int64_t{start}, int64_t{shard} * group.block_tokens));
}

// Block (tile, kv head, z): warp w has the queries w, w + kWarps, ... of the tile; lane l the key l
// of a tile of keys, and the values l, l + 32, ... of a head. Segments z, z + gridDim.z, ...
template <int kQueries, int kWarps, int kChunks>
__global__ void __launch_bounds__(32 * kWarps) attention_kernel(Attention a) {
  wait_for_previous();
  constexpr int kTileQueries = kQueries * kWarps;
  constexpr int kThreads = 32 * kWarps;
  extern __shared__ float4 shared[];
  __shared__ int64_t token_at[kTileTokens];  // byte offset of K in the arena; -1: nobody sees it
  __shared__ int32_t min_start, max_position;
  const int32_t head_dim = a.head_dim;
  const int32_t key_stride = head_dim + kPad;
  float* q_rows = reinterpret_cast<float*>(shared);     // [kTileQueries, head_dim]
  float* kv_rows = q_rows + kTileQueries * head_dim;    // [kTileTokens, key_stride]
  float* weights = kv_rows + kTileTokens * key_stride;  // [kTileQueries, kTileTokens]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t kv_head = blockIdx.y;
  const Tile tile = find_tile(a, blockIdx.x, kTileQueries);
  if (tile.count == 0) return;
  const HeadPages pages(a.pages, a.num_kv_heads, a.layer, kv_head, tile.seq);
  const KvGroupShape& group = *pages.group;
  const PageShape& page = group.page;
  const int32_t* window_start = a.pages.window_start + int64_t{pages.group_idx} * a.step_rows;
  const auto row_of = [&](int32_t query) {
    return static_cast<int32_t>((tile.first + query) / a.group);
  };
  const auto head_of = [&](int32_t query) {
    return kv_head * a.group + static_cast<int32_t>((tile.first + query) % a.group);
  };

  if (threadIdx.x == 0) {
    min_start = INT32_MAX;
    max_position = -1;
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < tile.count; i += kThreads) {
    atomicMin(&min_start, window_start[row_of(i)]);
    atomicMax(&max_position, a.positions[row_of(i)]);
  }
  for (int32_t i = threadIdx.x; i < tile.count * head_dim; i += kThreads) {
    const int32_t query = i / head_dim;
    q_rows[i] = a.q.get(row_of(query), head_of(query) * head_dim + i % head_dim);
  }
  __syncthreads();
  const int32_t tile_start = min_start, tile_end = max_position + 1;
  const int32_t mine = (tile.count - warp + kWarps - 1) / kWarps;  // queries of this warp
  int32_t position[kQueries], start[kQueries];
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    const int32_t row = i < mine ? row_of(warp + kWarps * i) : 0;
    position[i] = i < mine ? a.positions[row] : -1;
    start[i] = i < mine ? window_start[row] : 0;
  }

  State<kChunks> segment[kQueries], total[kQueries];
  for (State<kChunks>& state : total) state.clear();

  // K, then V of the tile of keys in hand, as f32; zeros where nobody looks.
  const auto load_rows = [&](int64_t half) {
    for (int32_t i = threadIdx.x; i < kTileTokens * head_dim / 8; i += kThreads) {
      const int32_t token = i / (head_dim / 8), d = i % (head_dim / 8) * 8;
      float* to = kv_rows + token * key_stride + d;
      if (token_at[token] >= 0) {
        load_kv8(a.pages.arena + token_at[token] + half, page.format, d, to);
      } else {
        for (int e = 0; e < 8; ++e) to[e] = 0;
      }
    }
  };
  // Keys at positions [first, first + count), count <= kTileTokens.
  const auto attend_keys = [&](int32_t first, int32_t count, float bias) {
    const int32_t key = first + lane;
    const bool permanent = group.permanent(key);
    __syncthreads();  // the tile before is used up
    if (warp == 0) {
      const bool seen = lane < count && key < tile_end && (key >= tile_start || permanent);
      token_at[lane] = seen ? pages.token_at(key) : -1;
    }
    __syncthreads();
    load_rows(0);
    __syncthreads();
    float product[kQueries] = {};
    for (int32_t d = 0; d < head_dim; d += 4) {
      const float4 k = *reinterpret_cast<const float4*>(kv_rows + lane * key_stride + d);
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        if (i >= mine) break;
        const float4 q =
            *reinterpret_cast<const float4*>(q_rows + (warp + kWarps * i) * head_dim + d);
        product[i] = fmaf(q.x, k.x, product[i]);
        product[i] = fmaf(q.y, k.y, product[i]);
        product[i] = fmaf(q.z, k.z, product[i]);
        product[i] = fmaf(q.w, k.w, product[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      if (i >= mine) break;
      State<kChunks>& state = segment[i];
      const bool visible = lane < count && key <= position[i] && (key >= start[i] || permanent);
      const float logit = visible ? a.logit(product[i]) + bias : -INFINITY;
      const float top = fmaxf(state.largest, warp_max(logit));
      float weight = 0;
      if (top != -INFINITY) {
        const float keep = expf(state.largest - top);
        weight = expf(logit - top);
        state.sum = fmaf(state.sum, keep, warp_sum(weight));
        for (float& value : state.values) value *= keep;
        state.largest = top;
      }
      weights[(warp + kWarps * i) * kTileTokens + lane] = weight;
    }
    __syncthreads();
    load_rows(page.k_bytes());
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int32_t d = 32 * c + lane;
      if (d >= head_dim) break;
      for (int32_t t = 0; t < kTileTokens; t += 4) {
        float v[4];
        for (int j = 0; j < 4; ++j) v[j] = kv_rows[(t + j) * key_stride + d];
#pragma unroll
        for (int i = 0; i < kQueries; ++i) {
          if (i >= mine) break;
          const float4 w =
              *reinterpret_cast<const float4*>(weights + (warp + kWarps * i) * kTileTokens + t);
          float& value = segment[i].values[c];
          value = fmaf(w.x, v[0], value);
          value = fmaf(w.y, v[1], value);
          value = fmaf(w.z, v[2], value);
          value = fmaf(w.w, v[3], value);
        }
      }
    }
  };

  if (a.selects) {  // one row: its list, as one segment
    for (State<kChunks>& state : segment) state.clear();
    const int32_t row = row_of(0);
    const int64_t list = int64_t{a.selection.row_block[row]} * a.num_kv_heads + kv_head;
    for (int32_t i = a.selection.begin[list]; i < a.selection.begin[list + 1]; ++i) {
      const float bias = a.selection.bias != nullptr ? a.selection.bias[i] : 0.0f;
      const int32_t begin = a.selection.pages[i] * page.page_tokens;
      for (int32_t t = 0; t < page.page_tokens; t += kTileTokens)
        attend_keys(begin + t, min(kTileTokens, page.page_tokens - t), bias);
    }
#pragma unroll
    for (int i = 0; i < kQueries; ++i) total[i].merge(segment[i]);
  } else {
    for (int32_t s = blockIdx.z; s * kSegmentTokens < tile_end; s += gridDim.z) {
      for (State<kChunks>& state : segment) state.clear();
      const int32_t end = min((s + 1) * kSegmentTokens, tile_end);
      int32_t p = next_visible(group, tile_start, s * kSegmentTokens);
      while (p < end) {
        const int32_t first = p / kTileTokens * kTileTokens;
        attend_keys(first, kTileTokens, 0.0f);
        p = next_visible(group, tile_start, first + kTileTokens);
      }
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        if (i >= mine) break;
        if (a.partials == nullptr) {
          total[i].merge(segment[i]);
          continue;
        }
        const int32_t query = warp + kWarps * i;
        float* to = a.partial(row_of(query), head_of(query), s);
        if (lane == 0) {
          to[0] = segment[i].largest;
          to[1] = segment[i].sum;
        }
        for (int c = 0; c < kChunks; ++c)
          if (32 * c + lane < head_dim) to[2 + 32 * c + lane] = segment[i].values[c];
      }
    }
  }
  if (a.partials != nullptr) return;
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    if (i >= mine) break;
    finish(a, row_of(warp + kWarps * i), head_of(warp + kWarps * i), total[i]);
  }
}

// Warp (row, head): the partial results of its segments, in order.
template <int kChunks>
__global__ void __launch_bounds__(32 * kMergeWarps) merge_kernel(Attention a) {
  start_next();
  wait_for_previous();
  constexpr int kAhead = 4;  // segments read before the first is used
  const int lane = threadIdx.x % 32;
  const int64_t query = int64_t{blockIdx.x} * kMergeWarps + threadIdx.x / 32;
  if (query >= int64_t{a.num_rows} * a.num_heads) return;
  const int32_t row = a.first_row + static_cast<int32_t>(query / a.num_heads);
  const auto head = static_cast<int32_t>(query % a.num_heads);
  const int32_t num_segments = a.positions[row] / kSegmentTokens + 1;
  State<kChunks> total;
  total.clear();
  for (int32_t s = 0; s < num_segments; s += kAhead) {
    State<kChunks> states[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float* from = a.partial(row, head, min(s + i, num_segments - 1));
      states[i].largest = from[0];
      states[i].sum = from[1];
      for (int c = 0; c < kChunks; ++c)
        states[i].values[c] = 32 * c + lane < a.head_dim ? from[2 + 32 * c + lane] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (s + i < num_segments) total.merge(states[i]);
  }
  finish(a, row, head, total);
}

template <int kChunks>
void merge(const Attention& a, const Stream& stream) {
  const int64_t queries = int64_t{a.num_rows} * a.num_heads;
  launch(stream,
         merge_kernel<kChunks>,
         dim3(static_cast<unsigned>((queries + kMergeWarps - 1) / kMergeWarps)),
         32 * kMergeWarps,
         0,
         a);
}

template <int kQueries, int kWarps, int kChunks>
void run(Attention a, const AttentionScratch& scratch, const Stream& stream) {
  constexpr int32_t kTileQueries = kQueries * kWarps;
  const auto tiles_of = [](int64_t queries) { return (queries + kTileQueries - 1) / kTileQueries; };
  const int64_t tiles = a.single_rows ? a.num_rows * tiles_of(a.group)
                                      : int64_t{a.num_rows} * a.group / kTileQueries + a.num_seqs;
  const int64_t blocks = tiles * a.num_kv_heads;
  const int64_t wanted = int64_t{kBlocksPerProcessor} * scratch.num_processors;
  const int64_t partial_bytes = int64_t{a.end_row()} * a.num_heads * scratch.max_segments *
                                (a.head_dim + 2) * int64_t{sizeof(float)};
  unsigned splits = 1;
  if (!a.selects && scratch.max_segments > 1 && blocks < wanted &&
      partial_bytes <= scratch.partials.bytes()) {
    splits = static_cast<unsigned>(
        std::min<int64_t>(scratch.max_segments, (wanted + blocks - 1) / blocks));
    a.partials = scratch.partials.as<float>();
    a.max_segments = scratch.max_segments;
  }
  const size_t shared_bytes =
      sizeof(float) *
      static_cast<size_t>(kTileQueries * a.head_dim + kTileTokens * (a.head_dim + kPad) +
                          kTileQueries * kTileTokens);
  const auto kernel = attention_kernel<kQueries, kWarps, kChunks>;
  HW_CUDA(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  launch(stream,
         kernel,
         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(a.num_kv_heads), splits),
         32 * kWarps,
         shared_bytes,
         a);
  if (a.partials != nullptr) merge<kChunks>(a, stream);
}

// 16 queries a block, or 64 where sequences bring many rows; with large heads their sums would not
// fit the registers.
template <int kChunks>
void run_chunks(const Attention& a,
                DType format,
                const AttentionScratch& scratch,
                const Stream& stream) {
  if (!scratch.deterministic) {
    if (attention_wgmma(a, format, scratch.num_processors, stream)) return;
    if (attention_mma(a, format, scratch, stream)) return;
  }
  if constexpr (kChunks <= 4)
    if (!a.single_rows) return run<8, 8, kChunks>(a, scratch, stream);
  run<4, 4, kChunks>(a, scratch, stream);
}

void run_rows(const Attention& a,
              DType format,
              const AttentionScratch& scratch,
              const Stream& stream) {
  switch ((a.head_dim + 31) / 32) {
    case 1:
      return run_chunks<1>(a, format, scratch, stream);
    case 2:
      return run_chunks<2>(a, format, scratch, stream);
    case 3:
      return run_chunks<3>(a, format, scratch, stream);
    case 4:
      return run_chunks<4>(a, format, scratch, stream);
    default:
      return run_chunks<8>(a, format, scratch, stream);
  }
}

}  // namespace

AttentionScratch attention_scratch(int32_t max_tokens,
                                   int32_t num_processors,
                                   bool deterministic,
                                   const Stream& stream) {
  return {allocate_device(kScratchBytes, stream),
          (max_tokens + kSegmentTokens - 1) / kSegmentTokens,
          num_processors,
          deterministic,
          allocate_device(kMostLists * int64_t{sizeof(int32_t)}, stream)};
}

void attention(const AttentionArgs& args,
               const StepView& step,
               const AttentionScratch& scratch,
               const Stream& stream) {
  if (step.num_rows == 0) return;
  const HeadShape& heads = args.heads;
  HW_CHECK(heads.head_dim % 16 == 0 && heads.head_dim <= kMaxHeadDim, "head size", heads.head_dim);
  Attention a{};
  a.layer = args.layer;
  a.num_heads = heads.num_heads;
  a.num_kv_heads = heads.num_kv_heads;
  a.group = heads.num_heads / heads.num_kv_heads;
  a.head_dim = heads.head_dim;
  a.scale = args.scale;
  a.softcap = args.softcap;
  a.step_rows = a.num_rows = step.num_rows;
  a.num_seqs = step.num_seqs;
  a.position_bound = step.position_bound;
  a.selects = args.selection != nullptr;
  a.merges = step.pages.compensates || args.virtual_tokens != nullptr;
  a.single_rows = a.selects || step.num_rows == step.num_seqs;
  a.positions = step.positions;
  a.row_seq = step.row_seq;
  a.row_begin = step.row_begin;
  a.pages = step.pages;
  if (a.selects) a.selection = *args.selection;
  if (args.virtual_tokens != nullptr) a.virtuals = *args.virtual_tokens;
  a.q = Activations(args.q);
  a.out = Activations(args.out);
  a.lse = static_cast<float*>(args.lse.data);
  a.lse_stride = args.lse.stride;
  const int32_t singles = step.num_single_rows;
  if (a.single_rows || singles == 0) return run_rows(a, step.pages.format, scratch, stream);
  // Decodes beside a prefill: a tile for rows of one sequence would hold one of them.
  Attention decodes = a;
  decodes.single_rows = true;
  decodes.num_rows = decodes.num_seqs = singles;
  run_rows(decodes, step.pages.format, scratch, stream);
  a.first_row = a.first_seq = singles;
  a.num_rows -= singles;
  a.num_seqs -= singles;
  run_rows(a, step.pages.format, scratch, stream);
}

}  // namespace headwater::cuda
