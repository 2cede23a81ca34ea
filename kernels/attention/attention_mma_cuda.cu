// One kernel and what only it uses: hence the length.
//
// Attention on tensor cores (mma m16n8k16, sm_80 and later): queries as f16 or bf16 like the pages,
// sums in fp32, weights of the softmax rounded like the pages. Online softmax over tiles of keys
// that cp.async brings into a ring in shared memory, page table entries one tile ahead of them.
//
// Two shapes of one kernel. Prefill: every warp has 16 queries, all share the keys. Decode: the
// warps share 16 queries (the heads of a group) and take a part of each tile of keys, merged at the
// end. Where blocks split a list of keys, the last of them merges.
#include <algorithm>

#include "kernels/attention/attention_mma_cuda.cuh"
#include "kernels/attention/decode_splits.h"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/base/mma_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kRowQueries = 16;  // of a warp: the rows of an mma
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;
constexpr int64_t kProcessorBytes = 227 * 1024;  // of shared memory, on Hopper
constexpr int64_t kStaticBytes = 4 * 1024;       // of a block, at most, beside its tiles
// Of a block, about, where not all run at once: lists have several lengths, and when the short ones
// are read, no long one should be left.
constexpr int32_t kBlockTokens = 2048;

template <typename T, int kDim, int kWarpsQ, int kWarpsK, int kKeys, int kStages>
struct Shape {
  static constexpr int kThreads = 32 * kWarpsQ * kWarpsK;
  static constexpr int kTileQueries = kRowQueries * kWarpsQ;
  static constexpr int kWarpKeys = kKeys / kWarpsK;
  // Whether the next tile's logits are under way while this one's weights are made.
  static constexpr bool kAhead = kWarpsK == 1 && kDim > 64 && kDim <= 128 && kStages >= 3;
  static constexpr int kStride = kDim + 8;       // elements of a row: ldmatrix meets no bank twice
  static constexpr int kHalf = kKeys * kStride;  // elements of K of a tile
  static constexpr size_t kTileBytes = size_t{kStages} * 2 * kHalf * sizeof(T);
  static constexpr size_t kMergeBytes = kWarpsK > 1 ? size_t{kWarpsK} * kRowQueries*(kDim + 2) *
                                                          sizeof(float)
                                                    : 0;
  static constexpr size_t kSharedBytes = kTileBytes > kMergeBytes ? kTileBytes : kMergeBytes;
  static_assert(kWarpKeys % 16 == 0 && kDim % 16 == 0 && (kWarpsQ == 1 || kWarpsK == 1));
};

// Whether this block is the last of `count` to come here: it sees what the others wrote before.
__device__ inline bool is_last(int32_t* arrived, int32_t count) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = count == 1 || atomicAdd(arrived, 1) == count - 1;
    if (last && count > 1) *arrived = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// Of a tile's rows: where their windows begin, and their positions.
struct Span {
  int32_t min_start, max_start, min_position, max_position;
};

template <typename T, int kDim, int kWarpsQ, int kWarpsK, int kKeys, int kStages>
__global__ void __launch_bounds__(32 * kWarpsQ * kWarpsK) mma_kernel(Attention a) {
  using S = Shape<T, kDim, kWarpsQ, kWarpsK, kKeys, kStages>;
  constexpr int kNBlocks = S::kWarpKeys / 8;
  extern __shared__ uint4 shared[];
  __shared__ int64_t token_at[kStages][kKeys];  // byte offset of K in the arena; -1: nobody looks
  __shared__ Span of_rows;
  T* tiles = reinterpret_cast<T*>(shared);  // [kStages][K, V][kKeys][kStride]
  start_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_q = warp / kWarpsK, warp_k = warp % kWarpsK;
  const int32_t kv_head = blockIdx.y;
  const Tile tile = find_tile(a, blockIdx.x, S::kTileQueries);
  if (tile.count == 0) return;
  const HeadPages pages(a.pages, a.num_kv_heads, a.layer, kv_head, tile.seq);
  const KvGroupShape group = *pages.group;
  const int64_t k_bytes = group.page.k_bytes();
  const int32_t* window_start = a.pages.window_start + int64_t{pages.group_idx} * a.step_rows;
  const auto row_of = [&](int32_t query) {
    return static_cast<int32_t>((tile.first + query) / a.group);
  };
  const auto head_of = [&](int32_t query) {
    return kv_head * a.group + static_cast<int32_t>((tile.first + query) % a.group);
  };
  Span span;
  if (a.single_rows) {
    const int32_t row = row_of(0);
    span = {window_start[row], window_start[row], a.positions[row], a.positions[row]};
  } else {
    if (threadIdx.x == 0) of_rows = {INT32_MAX, -1, INT32_MAX, -1};
    __syncthreads();
    for (int32_t i = threadIdx.x; i < tile.count; i += S::kThreads) {
      const int32_t row = row_of(i);
      atomicMin(&of_rows.min_start, window_start[row]);
      atomicMax(&of_rows.max_start, window_start[row]);
      atomicMin(&of_rows.min_position, a.positions[row]);
      atomicMax(&of_rows.max_position, a.positions[row]);
    }
    __syncthreads();
    span = of_rows;
  }
  const int32_t tile_start = span.min_start, tile_end = span.max_position + 1;

  const KeyTiles keys(group, tile_start, tile_end, kKeys);
  // Short lists of keys take fewer blocks than there are.
  const int32_t splits =
      min(static_cast<int32_t>(gridDim.z), (keys.count + a.split_tiles - 1) / a.split_tiles);
  const bool partial = a.partials != nullptr && (splits > 1 || a.merges);
  const bool idle = blockIdx.z >= splits;
  const auto begin = idle ? 0 : static_cast<int32_t>(int64_t{keys.count} * blockIdx.z / splits);
  const auto end = idle ? 0 : static_cast<int32_t>(int64_t{keys.count} * (blockIdx.z + 1) / splits);
  const auto next_from = [&](int32_t ordinal) {
    while (ordinal < end && !keys.visible(group, ordinal, tile_start, kKeys)) ++ordinal;
    return ordinal;
  };
  const auto look_up = [&](int32_t ordinal) -> int64_t {  // for key threadIdx.x of the tile
    if (ordinal >= end) return -1;
    const int32_t key = keys.tile(ordinal) * kKeys + static_cast<int32_t>(threadIdx.x);
    const bool seen = key < tile_end && (key >= tile_start || group.permanent(key));
    return seen ? pages.token_at(key) : -1;
  };
  const auto fetch = [&](int stage) {
    constexpr int kRowChunks = kDim / 8;
    T* to = tiles + stage * 2 * S::kHalf;
    for (int i = threadIdx.x; i < kKeys * kRowChunks; i += S::kThreads) {
      const int token = i / kRowChunks, d = i % kRowChunks * 8;
      const int64_t at = token_at[stage][token];
      const std::byte* from = a.pages.arena + (at < 0 ? 0 : at + d * int{sizeof(T)});
      copy_async(to + token * S::kStride + d, from, at >= 0);
      copy_async(to + S::kHalf + token * S::kStride + d, from + (at < 0 ? 0 : k_bytes), at >= 0);
    }
  };

  if (idle) return;
  int32_t fetched = next_from(begin);  // ordinal that is fetched next
  int32_t current = fetched;
  int32_t ahead[kStages];
#pragma unroll
  for (int s = 0; s < kStages; ++s) {
    ahead[s] = fetched;
    if (threadIdx.x < kKeys) token_at[s][threadIdx.x] = look_up(fetched);
    if (fetched < end) fetched = next_from(fetched + 1);
  }
  __syncthreads();
  // Of tokens that earlier steps left: nobody writes them now. (Of several rows the first ones
  // write what the later ones see.)
  const auto is_old = [&](int32_t ordinal) {
    return a.single_rows && ordinal < end && (keys.tile(ordinal) + 1) * kKeys <= span.min_position;
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s)
    if (is_old(ahead[s])) fetch(s);
  // Up to here only what earlier steps and the host left was read; now what this step's kernels do.
  wait_for_previous();

  // Of this lane's two queries, rows lane / 4 and lane / 4 + 8 of the warp's sixteen.
  int32_t position[2], start[2];
  uint32_t q[kDim / 16][4];
  {
    int64_t from[2];  // -1 where no query is
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t query = kRowQueries * warp_q + lane / 4 + 8 * r;
      const bool there = query < tile.count;
      const int32_t row = there ? row_of(query) : 0;
      position[r] = there ? a.positions[row] : -1;
      start[r] = there ? window_start[row] : 0;
      from[r] = there ? row * a.q.stride + head_of(query) * kDim + 2 * (lane % 4) : -1;
    }
    const auto load = [&](const auto* queries) {  // one type for all, so that no load waits
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float2 pair{0, 0};
          if (from[i % 2] >= 0) pair = get2(queries + from[i % 2] + 16 * k + 8 * (i / 2));
          q[k][i] = pack<T>(pair.x, pair.y);
        }
    };
    a.q.half ? load(static_cast<const __half*>(a.q.data))
             : load(static_cast<const float*>(a.q.data));
  }

  float out[kDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // largest: of logits times log2(e)
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (ahead[s] < end && !is_old(ahead[s])) fetch(s);
    end_group();
  }
  const float factor = a.softcap > 0 ? kLog2E : a.scale * kLog2E;  // logits are of base 2
  int32_t last = ahead[kStages - 1];  // whose tokens are looked up and not fetched
  const auto multiply_keys = [&](int stage, float(&s)[kNBlocks][4]) {
    const T* k_tile = tiles + stage * 2 * S::kHalf + warp_k * S::kWarpKeys * S::kStride;
#pragma unroll
    for (int n = 0; n < kNBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = 0;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
      for (int n = 0; n < kNBlocks; n += 2) {
        uint32_t b[4];
        load_matrices<false>(
            b,
            k_tile + (8 * n + lane % 8 + lane / 16 * 8) * S::kStride + 16 * k + lane / 8 % 2 * 8);
        multiply<T>(s[n], q[k], b[0], b[1]);
        multiply<T>(s[n + 1], q[k], b[2], b[3]);
      }
  };
  float s[kNBlocks][4];
  if constexpr (S::kAhead) {
    wait_for_groups<kStages - 2>();
    __syncthreads();
    if (current < end) multiply_keys(0, s);
  }
  for (int stage = 0; current < end; stage = stage + 1 == kStages ? 0 : stage + 1) {
    wait_for_groups<S::kAhead ? kStages - 3 : kStages - 2>();
    __syncthreads();
    if (last < end) fetch(stage == 0 ? kStages - 1 : stage - 1);
    end_group();
    const int64_t next_token = threadIdx.x < kKeys ? look_up(fetched) : -1;
    const T* v_tile = tiles + (stage * 2 + 1) * S::kHalf + warp_k * S::kWarpKeys * S::kStride;
    const int32_t base = keys.tile(current) * kKeys;
    const int32_t next = next_from(current + 1);
    float s_next[S::kAhead ? kNBlocks : 1][4];
    if constexpr (S::kAhead) {
      if (next < end) multiply_keys(stage + 1 == kStages ? 0 : stage + 1, s_next);
    } else {
      multiply_keys(stage, s);
    }

    if (a.softcap > 0) {
#pragma unroll
      for (int n = 0; n < kNBlocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = a.softcap * tanhf(s[n][i] * a.scale / a.softcap);
    }
    const int32_t first_key = base + warp_k * S::kWarpKeys + 2 * (lane % 4);
    if (base + kKeys - 1 > span.min_position) {
#pragma unroll
      for (int n = 0; n < kNBlocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (first_key + 8 * n + i % 2 > position[i / 2]) s[n][i] = -INFINITY;
    }
    if (base < span.max_start) {
#pragma unroll
      for (int n = 0; n < kNBlocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int32_t key = first_key + 8 * n + i % 2;
          if (key < start[i / 2] && !group.permanent(key)) s[n][i] = -INFINITY;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kNBlocks; ++n) top = fmaxf(top, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(largest[r], top * factor);
      const float reference = top == -INFINITY ? 0.0f : top;
      const float keep = exp2_fast(largest[r] - reference);
      largest[r] = top;
      sum[r] *= keep;
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d) {
        out[d][2 * r] *= keep;
        out[d][2 * r + 1] *= keep;
      }
#pragma unroll
      for (int n = 0; n < kNBlocks; ++n)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          s[n][i] = exp2_fast(fmaf(s[n][i], factor, -reference));
          sum[r] += s[n][i];
        }
    }
#pragma unroll
    for (int n = 0; n < kNBlocks; n += 2) {
      const uint32_t weights[4] = {pack<T>(s[n][0], s[n][1]),
                                   pack<T>(s[n][2], s[n][3]),
                                   pack<T>(s[n + 1][0], s[n + 1][1]),
                                   pack<T>(s[n + 1][2], s[n + 1][3])};
#pragma unroll
      for (int d = 0; d < kDim / 8; d += 2) {
        uint32_t b[4];
        load_matrices<true>(
            b, v_tile + (8 * n + lane % 8 + lane / 8 % 2 * 8) * S::kStride + 8 * d + lane / 16 * 8);
        multiply<T>(out[d], weights, b[0], b[1]);
        multiply<T>(out[d + 1], weights, b[2], b[3]);
      }
    }

    if (threadIdx.x < kKeys) token_at[stage][threadIdx.x] = next_token;
    if constexpr (S::kAhead) {
#pragma unroll
      for (int n = 0; n < kNBlocks; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = s_next[n][i];
    }
    current = next;
    last = fetched;
    if (fetched < end) fetched = next_from(fetched + 1);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
  }

  // One query's value d, as the kernel leaves it.
  const auto write = [&](int32_t query, int d, float value, float max2, float total) {
    const int32_t row = row_of(query), head = head_of(query);
    if (partial) {
      a.partial(row, head, static_cast<int32_t>(blockIdx.z))[2 + d] = value;
      return;
    }
    a.out.put(row, head * kDim + d, total > 0 ? value / total : 0.0f);
    if (d == 0 && a.lse != nullptr) a.lse[row * a.lse_stride + head] = max2 * kLn2 + logf(total);
  };
  const auto write_sums = [&](int32_t query, float max2, float total) {
    if (!partial) return;
    float* to = a.partial(row_of(query), head_of(query), static_cast<int32_t>(blockIdx.z));
    to[0] = max2 * kLn2;
    to[1] = total;
  };
  if constexpr (kWarpsK == 1) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t query = kRowQueries * warp_q + lane / 4 + 8 * r;
      if (query >= tile.count) continue;
      if (lane % 4 == 0) write_sums(query, largest[r], sum[r]);
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          write(query, 8 * d + 2 * (lane % 4) + i, out[d][2 * r + i], largest[r], sum[r]);
    }
  } else {
    wait_for_groups<0>();
    __syncthreads();                                        // the tiles' memory is free
    float* values = reinterpret_cast<float*>(shared);       // [kWarpsK, 16, kDim]
    float* maxima = values + kWarpsK * kRowQueries * kDim;  // [kWarpsK, 16]
    float* sums = maxima + kWarpsK * kRowQueries;           // [kWarpsK, 16]
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = warp_k * kRowQueries + lane / 4 + 8 * r;
      if (lane % 4 == 0) {
        maxima[at] = largest[r];
        sums[at] = sum[r];
      }
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          values[at * kDim + 8 * d + 2 * (lane % 4) + i] = out[d][2 * r + i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < tile.count * kDim; i += S::kThreads) {
      const int query = i / kDim, d = i % kDim;
      float max2 = -INFINITY, total = 0, value = 0;
      for (int w = 0; w < kWarpsK; ++w) max2 = fmaxf(max2, maxima[w * kRowQueries + query]);
      for (int w = 0; max2 != -INFINITY && w < kWarpsK; ++w) {
        const int at = w * kRowQueries + query;
        const float weight = exp2f(maxima[at] - max2);
        total = fmaf(sums[at], weight, total);
        value = fmaf(values[at * kDim + d], weight, value);
      }
      if (d == 0) write_sums(query, max2, total);
      write(query, d, value, max2, total);
    }
  }
  if (!partial || !is_last(a.arrived + blockIdx.x * gridDim.y + blockIdx.y, splits)) return;
  constexpr int kChunks = (kDim + 31) / 32;
  for (int32_t query = warp; query < tile.count; query += kWarpsQ * kWarpsK) {
    const int32_t row = row_of(query), head = head_of(query);
    State<kChunks> merged = merge_splits<kChunks>(a, row, head, splits);
    finish(a, row, head, merged);
  }
}

// Blocks of kBlockTokens that the longest list of keys has, where lists may differ; otherwise 1.
int64_t longest_blocks(const Attention& a, const AttentionScratch& scratch) {
  if (!a.single_rows || a.num_rows == 1) return 1;
  const int64_t tokens =
      a.position_bound > 0 ? a.position_bound : int64_t{scratch.max_segments} * kSegmentTokens;
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

template <typename T, int kDim, int kWarpsQ, int kWarpsK, int kKeys, int kStages>
void run(Attention a, const AttentionScratch& scratch, const Stream& stream) {
  using S = Shape<T, kDim, kWarpsQ, kWarpsK, kKeys, kStages>;
  const auto tiles_of = [](int64_t queries) {
    return (queries + S::kTileQueries - 1) / S::kTileQueries;
  };
  const int64_t tiles = a.single_rows
                            ? a.num_rows * tiles_of(a.group)
                            : int64_t{a.num_rows} * a.group / S::kTileQueries + a.num_seqs;
  const int64_t blocks = tiles * a.num_kv_heads;
  constexpr int64_t kAtOnce = std::clamp<int64_t>(
      kProcessorBytes / static_cast<int64_t>(S::kSharedBytes + kStaticBytes), 1, 4);
  const int64_t slots = kAtOnce * scratch.num_processors;
  const int64_t split_bytes =
      int64_t{a.end_row()} * a.num_heads * (a.head_dim + 2) * int64_t{sizeof(float)};
  const auto [splits, split_tiles] =
      split_lists(blocks,
                  blocks <= kMostLists ? longest_blocks(a, scratch) : 1,
                  slots,
                  std::min(kMaxSplits, scratch.partials.bytes() / split_bytes),
                  kBlockTokens / kKeys);
  a.split_tiles = split_tiles;
  if (splits > 1 || a.merges) {
    a.partials = scratch.partials.as<float>();
    a.max_segments = splits;
    a.arrived = scratch.arrived.as<int32_t>();
  }
  const auto kernel = mma_kernel<T, kDim, kWarpsQ, kWarpsK, kKeys, kStages>;
  HW_CUDA(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(S::kSharedBytes)));
  launch(stream,
         kernel,
         dim3(static_cast<unsigned>(tiles),
              static_cast<unsigned>(a.num_kv_heads),
              static_cast<unsigned>(splits)),
         S::kThreads,
         S::kSharedBytes,
         a);
}

// Devices with little shared memory (99 KiB a block) take large heads in smaller steps.
template <typename T, int kDim>
void run_dim(const Attention& a, const AttentionScratch& scratch, const Stream& stream) {
  constexpr bool kLarge = kDim > 128;
  constexpr int kWarpsQ = kLarge ? 4 : 8, kWarpsK = kLarge ? 2 : 4, kKeys = kLarge ? 32 : 64;
  constexpr int kStages = kLarge ? 2 : 3;
  // Of decodes of small heads, few large tiles.
  constexpr int kListKeys = kDim == 64 ? 128 : 64, kListStages = kDim == 64 ? 2 : kStages;
  if constexpr (kDim > 96) {
    using Largest = Shape<T, kDim, 1, 4, 64, kStages>;
    if (static_cast<int64_t>(Largest::kSharedBytes) + kStaticBytes > max_shared_bytes()) {
      if (a.single_rows) return run<T, kDim, 1, kWarpsK, kKeys, 2>(a, scratch, stream);
      return run<T, kDim, kWarpsQ, 1, kKeys, 2>(a, scratch, stream);
    }
  }
  if constexpr (kDim > 80 && kStages == 3)  // long lists: more blocks at once, fewer tiles of each
    if (longest_blocks(a, scratch) > 1) return run<T, kDim, 1, 4, 64, 2>(a, scratch, stream);
  if (a.single_rows) return run<T, kDim, 1, 4, kListKeys, kListStages>(a, scratch, stream);
  return run<T, kDim, kWarpsQ, 1, kKeys, 3>(a, scratch, stream);
}

template <typename T>
bool run_type(const Attention& a, const AttentionScratch& scratch, const Stream& stream) {
  switch (a.head_dim) {
    case 32:
      return run_dim<T, 32>(a, scratch, stream), true;
    case 64:
      return run_dim<T, 64>(a, scratch, stream), true;
    case 80:
      return run_dim<T, 80>(a, scratch, stream), true;
    case 96:
      return run_dim<T, 96>(a, scratch, stream), true;
    case 128:
      return run_dim<T, 128>(a, scratch, stream), true;
    case 256:
      return run_dim<T, 256>(a, scratch, stream), true;
    default:
      return false;
  }
}

}  // namespace

bool attention_mma(const Attention& a,
                   DType format,
                   const AttentionScratch& scratch,
                   const Stream& stream) {
  if (a.selects || format == DType::kF32) return false;
  if (a.merges && scratch.partials.bytes() < int64_t{a.end_row()} * a.num_heads * (a.head_dim + 2) *
                                                 int64_t{sizeof(float)})
    return false;
  return format == DType::kF16 ? run_type<__half>(a, scratch, stream)
                               : run_type<__nv_bfloat16>(a, scratch, stream);
}

}  // namespace headwater::cuda
