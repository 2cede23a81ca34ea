// One kernel and what only it uses: hence the length.
//
// Prefill on Hopper. A block has 128 queries, 64 for each of two warpgroups that multiply; of a
// third one, two warps copy tiles of keys from their pages and two of values, to a ring of three
// each, in the layout that wgmma reads (rows of 128 bytes, swizzled): sixteen tokens at once by the
// copy engine. The logits of one tile are multiplied while the values of the tile before it are.
// Online softmax as in attention_mma_cuda.cu, whose roundings it has.
#include "kernels/attention/attention_wgmma_cuda.cuh"
#include "kernels/base/check.h"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/base/mma_cuda.cuh"
#include "kernels/base/tensor_map_cuda.cuh"
#include "kernels/base/wgmma_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;
constexpr int kMultipliers = 2;  // warpgroups
constexpr int kTileQueries = 64 * kMultipliers;
constexpr int kThreads = 128 * (kMultipliers + 1);
constexpr int kKeys = 128;
constexpr int kStages = 3;
constexpr int kBoxRows = 16;  // keys of one copy: pages hold whole multiples
constexpr int64_t kSharedKeyBytes = int64_t{32} << 20;  // of K and V, that the L2 cache keeps

template <int kDim>
struct Shape {
  static constexpr int kQueryBytes = kTileQueries * kDim * 2;
  static constexpr int kTileBytes = kKeys * kDim * 2;              // of K, or of V
  static constexpr int kCopied = kDim == 128 ? kKeys : kKeys / 2;  // keys, by one warp
  static constexpr int kSharedBytes = kQueryBytes + 2 * kStages * kTileBytes + kSwizzleAlign;
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    wgmma_kernel(Attention a, int32_t heads_at_once, const __grid_constant__ CUtensorMap rows) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using S = Shape<kDim>;
  constexpr int kCopied = S::kCopied;
  extern __shared__ std::byte dynamic[];
  __shared__ uint64_t k_full[kStages], k_free[kStages], v_full[kStages], v_free[kStages];
  __shared__ int32_t min_start, max_start, min_position, max_position;
  std::byte* const q_tile = align_swizzle(dynamic);
  std::byte* const k_tiles = q_tile + S::kQueryBytes;
  std::byte* const v_tiles = k_tiles + kStages * S::kTileBytes;
  start_next();
  const int warpgroup = threadIdx.x / 128, lane = threadIdx.x % 32;
  // Blocks that run together share heads, whose keys the L2 cache holds. The last tiles see most
  // keys: they go first.
  const auto num_tiles = static_cast<int32_t>(gridDim.x) / a.num_kv_heads;
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t first_head = block / (num_tiles * heads_at_once) * heads_at_once;
  const int32_t num_heads = min(heads_at_once, a.num_kv_heads - first_head);
  const int32_t own_block = block - first_head * num_tiles;
  const int32_t kv_head = first_head + own_block % num_heads;
  const Tile tile = find_tile(a, num_tiles - 1 - own_block / num_heads, kTileQueries);
  if (tile.count == 0) return;
  const HeadPages pages(a.pages, a.num_kv_heads, a.layer, kv_head, tile.seq);
  const KvGroupShape group = *pages.group;
  const int32_t* window_start = a.pages.window_start + int64_t{pages.group_idx} * a.step_rows;
  const auto row_of = [&](int32_t query) {
    return static_cast<int32_t>((tile.first + query) / a.group);
  };
  const auto head_of = [&](int32_t query) {
    return kv_head * a.group + static_cast<int32_t>((tile.first + query) % a.group);
  };
  if (threadIdx.x == 0) {
    min_start = min_position = INT32_MAX;
    max_start = max_position = -1;
    for (int s = 0; s < kStages; ++s) {
      init_barrier(&k_full[s], 64);
      init_barrier(&v_full[s], 64);
      init_barrier(&k_free[s], 4 * kMultipliers);
      init_barrier(&v_free[s], 4 * kMultipliers);
    }
    publish_barriers();
  }
  __syncthreads();
  if (static_cast<int32_t>(threadIdx.x) < tile.count) {
    const int32_t row = row_of(static_cast<int32_t>(threadIdx.x));
    atomicMin(&min_start, window_start[row]);
    atomicMax(&max_start, window_start[row]);
    atomicMin(&min_position, a.positions[row]);
    atomicMax(&max_position, a.positions[row]);
  }
  __syncthreads();
  const int32_t tile_start = min_start, tile_end = max_position + 1;
  const KeyTiles keys(group, tile_start, tile_end, kKeys);
  const auto next_from = [&](int32_t ordinal) {
    while (ordinal < keys.count && !keys.visible(group, ordinal, tile_start, kKeys)) ++ordinal;
    return ordinal;
  };

  if (warpgroup == kMultipliers) {  // two warps copy keys, two copy values: 64 columns of kCopied
    limit_registers<40>();
    const int warp = threadIdx.x / 32 % 4;
    const bool of_values = warp >= 2;
    const int half = kDim == 128 ? warp % 2 : 0, first_key = kDim == 128 ? 0 : kCopied * (warp % 2);
    std::byte* const tiles = (of_values ? v_tiles : k_tiles) + half * kKeys * 128 + first_key * 128;
    uint64_t *const full = of_values ? v_full : k_full, *const free = of_values ? v_free : k_free;
    const int64_t behind = of_values ? group.page.k_bytes() : 0;
    constexpr int kRowBytes = kDim * 2, kLaneKeys = kCopied / 32;
    struct Keys {     // a lane's, side by side in one page
      int64_t at;     // where the first one lies in the arena
      uint32_t seen;  // a bit for each
    };
    const auto look_up = [&](int32_t ordinal) -> Keys {
      Keys found = {0, 0};
      if (ordinal >= keys.count) return found;
      const int32_t first = keys.tile(ordinal) * kKeys + first_key + kLaneKeys * lane;
#pragma unroll
      for (int i = 0; i < kLaneKeys; ++i)
        if (first + i < tile_end && (first + i >= tile_start || group.permanent(first + i)))
          found.seen |= 1u << i;
      if (found.seen != 0) found.at = pages.token_at(first) + behind;
      return found;
    };
    // Where all are seen, boxes; else token by token, the others as zeros.
    const auto copy = [&](std::byte* to, const Keys& found, uint64_t* arrived) {
      if (__all_sync(~0u, found.seen == (1u << kLaneKeys) - 1)) {
        lane == 0 ? arrive_expecting(arrived, kCopied * 128) : arrive(arrived);
        __syncwarp();
        if (lane % (kBoxRows / kLaneKeys) == 0)
          copy_box(to + kLaneKeys * lane * 128,
                   rows,
                   64 * half,
                   static_cast<int32_t>(found.at / kRowBytes),
                   arrived);
        return;
      }
#pragma unroll 4
      for (int i = 0; i < kCopied; i += 4) {  // four keys of eight chunks at once
        const int key = i + lane / 8, chunk = lane % 8;
        const int64_t at = __shfl_sync(~0u, found.at, key / kLaneKeys) +
                           key % kLaneKeys * kRowBytes + 128 * half + 16 * chunk;
        const bool seen = __shfl_sync(~0u, found.seen, key / kLaneKeys) >> key % kLaneKeys & 1;
        copy_async(to + swizzled<kKeys>(key, chunk), a.pages.arena + (seen ? at : 0), seen);
      }
      arrive_with_copies(arrived);
    };
    Turn turn;
    int32_t ordinal = next_from(0);
    Keys found = look_up(ordinal);
    wait_for_previous();
    while (ordinal < keys.count) {
      ordinal = next_from(ordinal + 1);
      const Keys next = look_up(ordinal);
      wait_barrier(&free[turn.slot], turn.parity ^ 1);
      copy(tiles + turn.slot * S::kTileBytes, found, &full[turn.slot]);
      turn.advance(kStages);
      found = next;
    }
    return;
  }

  raise_registers<232>();
  wait_for_previous();
  const int first_query = 64 * warpgroup;
  for (int i = threadIdx.x % 128; i < 64 * kDim / 8; i += 128) {
    const int query = first_query + i / (kDim / 8), chunk = i % (kDim / 8);
    uint4 words = {0, 0, 0, 0};
    if (query < tile.count)
      words = a.q.at(row_of(query), head_of(query) * kDim + 8 * chunk, [](const auto* q) {
        return load_query<T>(q);
      });
    *reinterpret_cast<uint4*>(q_tile + swizzled<kTileQueries>(query, chunk)) = words;
  }
  publish_shared();
  wait_named(1 + warpgroup, 128);

  // Of this lane's two queries, rows lane / 4 and lane / 4 + 8 of the warp's sixteen.
  const int own_query = first_query + threadIdx.x / 32 % 4 * 16 + lane / 4;
  int32_t position[2], start[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int32_t query = own_query + 8 * r;
    const bool there = query < tile.count;
    position[r] = there ? a.positions[row_of(query)] : -1;
    start[r] = there ? window_start[row_of(query)] : 0;
  }
  const float factor = a.scale * kLog2E;  // logits are of base 2
  float s[kKeys / 2], out[kDim / 2];
  uint32_t weights[kKeys / 4];
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {}, keep[2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) out[i] = 0;

  const auto multiply_keys = [&](int slot) {
    const uint64_t q_at = k_major(q_tile + first_query * 128);
    const uint64_t k_at = k_major(k_tiles + slot * S::kTileBytes);
    fence_wgmma();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const int half = k / 4, step = k % 4 * 32;
      wgmma_shared<T>(s,
                      q_at + (half * kTileQueries * 128 + step) / 16,
                      k_at + (half * kKeys * 128 + step) / 16,
                      k > 0);
    }
    end_wgmma();
  };
  const auto multiply_values = [&](int slot) {
    const uint64_t v_at = n_major(v_tiles + slot * S::kTileBytes, kKeys * 128);
    fence_wgmma();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
      wgmma_registers<T>(out, &weights[4 * k], v_at + k * 16 * 128 / 16);
    end_wgmma();
  };
  // What threads copied, and not the copy engine, is published.
  const auto await = [&](uint64_t* barrier, uint32_t parity, int32_t ordinal) {
    wait_barrier(barrier, parity);
    const int32_t base = keys.tile(ordinal) * kKeys;
    if (base < tile_start || base + kKeys > tile_end) publish_shared();
  };
  const auto release = [&](uint64_t* barrier) {
    __syncwarp();
    if (lane == 0) arrive(barrier);
  };
  // Logits to weights, in place; `keep` is what the sums so far are worth.
  const auto soften = [&](int32_t ordinal) {
    const int32_t base = keys.tile(ordinal) * kKeys, first_key = base + 2 * (lane % 4);
    if (base + kKeys - 1 > min_position) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i)
        if (first_key + 8 * (i / 4) + i % 2 > position[i / 2 % 2]) s[i] = -INFINITY;
    }
    if (base < max_start) {
      uint64_t hidden = 0;  // found in a loop that stays one: registers take no index
#pragma unroll 1
      for (int i = 0; i < kKeys / 2; ++i) {
        const int32_t key = first_key + 8 * (i / 4) + i % 2;
        const bool sees = key >= (i & 2 ? start[1] : start[0]) || group.permanent(key);
        hidden |= uint64_t{!sees} << i;
      }
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i)
        if (hidden >> i & 1) s[i] = -INFINITY;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -INFINITY;
#pragma unroll
      for (int i = 0; i < kKeys / 2; i += 4)
        top = fmaxf(top, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(largest[r], top * factor);
      const float reference = top == -INFINITY ? 0.0f : top;
      keep[r] = exp2_fast(largest[r] - reference);
      largest[r] = top;
      sum[r] *= keep[r];
#pragma unroll
      for (int i = 0; i < kKeys / 2; i += 4)
#pragma unroll
        for (int j = i + 2 * r; j < i + 2 * r + 2; ++j) {
          s[j] = exp2_fast(fmaf(s[j], factor, -reference));
          sum[r] += s[j];
        }
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) asm volatile("" : "+f"(s[i]));  // ahead of the next wait
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) weights[i] = pack<T>(s[2 * i], s[2 * i + 1]);
  };

  // The warpgroups take turns at the tensor cores: one multiplies while the other softens.
  constexpr int kTurns = 1 + kMultipliers;  // the first of their barriers
  const auto await_turn = [&] { wait_named(kTurns + warpgroup, 128 * kMultipliers); };
  const auto pass_turn = [&] {
    arrive_named(kTurns + (warpgroup + 1) % kMultipliers, 128 * kMultipliers);
  };

  Turn k_turn, v_turn;
  int32_t ordinal = next_from(0);
  if (warpgroup == kMultipliers - 1) pass_turn();
  await(&k_full[0], 0, ordinal);
  await_turn();
  multiply_keys(0);
  pass_turn();
  wait_wgmma<0>(s);
  release(&k_free[0]);
  k_turn.advance(kStages);
  soften(ordinal);
  pack_weights();
  int32_t previous = ordinal;
  ordinal = next_from(ordinal + 1);
  if (ordinal < keys.count) await(&k_full[k_turn.slot], k_turn.parity, ordinal);
  while (ordinal < keys.count) {
    await(&v_full[v_turn.slot], v_turn.parity, previous);
    await_turn();
    multiply_keys(k_turn.slot);
    multiply_values(v_turn.slot);
    pass_turn();
    wait_wgmma<1>(s);
    release(&k_free[k_turn.slot]);
    k_turn.advance(kStages);
    soften(ordinal);
    previous = ordinal;
    ordinal = next_from(ordinal + 1);
    if (ordinal < keys.count) await(&k_full[k_turn.slot], k_turn.parity, ordinal);
    wait_wgmma<0>(out);
    release(&v_free[v_turn.slot]);
    v_turn.advance(kStages);
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) out[i] *= keep[i / 2 % 2];
    pack_weights();
  }
  await(&v_full[v_turn.slot], v_turn.parity, previous);
  multiply_values(v_turn.slot);
  wait_wgmma<0>(out);
  if (warpgroup == 0) await_turn();  // the turn that nobody took

  // A key of full weight that is in no page, seen by query r. Its four lanes hold the columns
  // 8 * d + 2 * (lane % 4) and the ones behind them, here as in `out`.
  const auto join = [&](int r, const float* k, const float* v, float divisor, float bias) {
    const uint32_t quad = 0xFu << (lane & ~3);
    const int32_t row = row_of(own_query + 8 * r), head = head_of(own_query + 8 * r);
    float product = 0;
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      const int column = 8 * d + 2 * (lane % 4);
      const float2 q = a.q.get2(row, head * kDim + column);
      const float2 key = get2(k + column);
      product = fmaf(q.x, key.x, fmaf(q.y, key.y, product));
    }
    product += __shfl_xor_sync(quad, product, 1);
    product += __shfl_xor_sync(quad, product, 2);
    const float logit = fmaf(product / divisor, factor, bias * kLog2E);
    const float top = fmaxf(largest[r], logit);
    const float mine = exp2_fast(largest[r] - top), weight = exp2_fast(logit - top);
    largest[r] = top;
    sum[r] = fmaf(sum[r], mine, weight);
#pragma unroll
    for (int d = 0; d < kDim / 8; ++d) {
      const float2 value = get2(v + 8 * d + 2 * (lane % 4));
      out[4 * d + 2 * r] = fmaf(out[4 * d + 2 * r], mine, weight * (value.x / divisor));
      out[4 * d + 2 * r + 1] = fmaf(out[4 * d + 2 * r + 1], mine, weight * (value.y / divisor));
    }
  };
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    const int32_t query = own_query + 8 * r;
    if (query >= tile.count) continue;
    const int32_t row = row_of(query), head = head_of(query);
    if (a.pages.compensates && group.record_begin >= 0 && start[r] > group.sink_tokens) {
      const float* record = pages.record_at(start[r] / group.block_tokens);
      const auto count = static_cast<float>(start[r] - group.sink_tokens);
      join(r, record, record + kDim, count, logf(count));
    }
    if (a.virtuals.begin != nullptr) {
      const int64_t list = int64_t{tile.seq} * a.num_kv_heads + kv_head;
      for (int32_t i = a.virtuals.begin[list]; i < a.virtuals.begin[list + 1]; ++i)
        join(r,
             a.virtuals.k + int64_t{i} * kDim,
             a.virtuals.v + int64_t{i} * kDim,
             1.0f,
             a.virtuals.bias[i]);
    }
    const float divisor = sum[r] > 0 ? 1.0f / sum[r] : 0.0f;
    a.out.at(row, head * kDim, [&](auto* to) {
#pragma unroll
      for (int d = 0; d < kDim / 8; ++d)
        put2(to + 8 * d + 2 * (lane % 4),
             {out[4 * d + 2 * r] * divisor, out[4 * d + 2 * r + 1] * divisor});
    });
    if (lane % 4 == 0 && a.lse != nullptr)
      a.lse[row * a.lse_stride + head] = largest[r] * kLn2 + logf(sum[r]);
  }
#endif
}

// The arena as rows of one head's keys or values.
template <typename T>
CUtensorMap rows_of(const std::byte* arena, int head_dim) {
  const auto width = static_cast<uint64_t>(head_dim);
  return tensor_map<2>(std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                       arena,
                       {width, uint64_t{1} << 31},
                       {width * 2},
                       {64, kBoxRows});
}

template <typename T, int kDim>
void run(const Attention& a, int64_t blocks, const Stream& stream) {
  using S = Shape<kDim>;
  const auto kernel = wgmma_kernel<T, kDim>;
  HW_CUDA(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes));
  const int64_t head_bytes = std::max<int64_t>(a.position_bound, 1) * kDim * 4;
  const auto heads_at_once =
      static_cast<int32_t>(std::clamp<int64_t>(kSharedKeyBytes / head_bytes, 1, a.num_kv_heads));
  launch(stream,
         kernel,
         dim3(static_cast<unsigned>(blocks)),
         kThreads,
         static_cast<size_t>(S::kSharedBytes),
         a,
         heads_at_once,
         rows_of<T>(a.pages.arena, kDim));
}

}  // namespace

bool attention_wgmma(const Attention& a,
                     DType format,
                     int32_t num_processors,
                     const Stream& stream) {
  if (!has_body<wgmma_kernel<__half, 64>>() || a.selects || a.single_rows || a.softcap > 0 ||
      format == DType::kF32)
    return false;
  if (a.head_dim != 64 && a.head_dim != 128) return false;
  const int64_t tiles = int64_t{a.num_rows} * a.group / kTileQueries + a.num_seqs;
  const int64_t blocks = tiles * a.num_kv_heads;
  if (2 * blocks < num_processors) return false;
  if (format == DType::kF16)
    a.head_dim == 64 ? run<__half, 64>(a, blocks, stream) : run<__half, 128>(a, blocks, stream);
  else
    a.head_dim == 64 ? run<__nv_bfloat16, 64>(a, blocks, stream)
                     : run<__nv_bfloat16, 128>(a, blocks, stream);
  return true;
}

}  // namespace headwater::cuda
