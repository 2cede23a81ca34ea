// Some rows of activations times an F16 weight on Hopper: bound by the weight's bytes. The weight
// is the instruction's A, all of the activations its B; a warp asks the copy engine for tiles of
// both, a ring of them ahead of the two warpgroups that multiply. The ring fills with weights while
// the kernels in front still run.
//
// A block has a processor for itself and takes tiles of 128 rows of the weight, one after another.
// Blocks that have none left leave their share of the bandwidth to the others. Where the weight has
// fewer tiles than there are processors, clusters of blocks split the inputs and add up their sums
// in each other's shared memory.
#include <cooperative_groups.h>

#include <algorithm>
#include <array>

#include "kernels/base/elements_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/base/tensor_map_cuda.cuh"
#include "kernels/base/wgmma_cuda.cuh"
#include "kernels/linear/half_rows_cuda.cuh"
#include "kernels/norm/rows_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kFewestXRows = 5;
constexpr int kMostXRows = 16;        // 64 are as fast with cuBLAS
constexpr int kInstructionRows = 64;  // of the weight, for each warpgroup
constexpr int kMultipliers = 2;       // warpgroups
constexpr int kTileRows = kInstructionRows * kMultipliers;
constexpr int kMultiplierThreads = 128 * kMultipliers;
constexpr int kThreads = kMultiplierThreads + 32;
constexpr int kChunk = 64;    // inputs at a time: 128 bytes
constexpr int kGateRows = 8;  // of the gate, then as many that they gate, are in one thread
constexpr int kTileBytes = kTileRows * kChunk * 2;
constexpr int kMostStages = 12;
constexpr int kMostSplits = 8;  // blocks of a cluster

struct HalfRows {
  int32_t tiles, chunks;
  int32_t out_cols, x_rows;
  Activations out;
  bool add;
  Gate gate;
  int32_t stages;
};

template <int kXRows>
constexpr int kStageBytes = kTileBytes + kXRows* kChunk * 2;

struct Turn {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance(int slots) {
    slot = slot + 1 == slots ? 0 : slot + 1;
    if (slot == 0) parity ^= 1;
  }
};

// A block's place in the weight: tiles `step` apart, of each the same inputs.
struct Place {
  int32_t tile, step, tiles;
  int32_t first, end, chunk;

  __device__ Place(const HalfRows& a, int32_t split)
      : tile(blockIdx.x),
        step(gridDim.x),
        tiles(a.tiles),
        first(static_cast<int32_t>(a.chunks * split / gridDim.y)),
        end(static_cast<int32_t>(a.chunks * (split + 1) / gridDim.y)),
        chunk(first) {}
  __device__ bool there() const { return tile < tiles; }
  __device__ void advance() {
    if (++chunk < end) return;
    chunk = first;
    tile += step;
  }
};

__device__ inline void synchronize_cluster() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  cooperative_groups::this_cluster().sync();
#endif
}
__device__ inline const float4* of_block(float4* shared, unsigned rank) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
#else
  return shared;
#endif
}

// Block (place among the tiles, split of the inputs).
// kXRows: of activations, the last ones maybe zeros.
template <int kXRows>
__global__ void __launch_bounds__(kThreads, 2)
    half_rows_kernel(HalfRows a,
                     const __grid_constant__ CUtensorMap w_map,
                     const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kGroups = kXRows / 8;  // of activations: four sums of a thread each
  extern __shared__ std::byte dynamic[];
  __shared__ uint64_t full[kMostStages], free[kMostStages];
  std::byte* const stages = align_swizzle(dynamic);
  start_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool split = gridDim.y > 1;
  if (threadIdx.x == 0) {
    for (int s = 0; s < a.stages; ++s) {
      init_barrier(&full[s], 1);
      init_barrier(&free[s], kMultiplierThreads / 32);
    }
    publish_barriers();
  }
  __syncthreads();
  Place place(a, static_cast<int32_t>(blockIdx.y));

  if (warp == kMultiplierThreads / 32) {
    const auto copy_weight = [&](const Place& at, int slot) {
      std::byte* to = stages + slot * kStageBytes<kXRows>;
      arrive_expecting(&full[slot], kStageBytes<kXRows>);
      if (a.gate == Gate::kNone)
        copy_box(to, w_map, at.chunk * kChunk, at.tile * kTileRows, &full[slot]);
      else
        copy_box(
            to, w_map, at.chunk * kChunk, 0, 0, at.tile * kTileRows / (2 * kGateRows), &full[slot]);
    };
    const auto copy_x = [&](const Place& at, int slot) {
      copy_box(stages + slot * kStageBytes<kXRows> + kTileBytes,
               x_map,
               at.chunk * kChunk,
               0,
               &full[slot]);
    };
    Place at = place;
    if (lane == 0) {
      for (int i = 0; i < a.stages && at.there(); ++i, at.advance()) copy_weight(at, i);
      wait_for_previous();
      at = place;
      for (int i = 0; i < a.stages && at.there(); ++i, at.advance()) copy_x(at, i);
      Turn turn;
      for (; at.there(); at.advance()) {
        wait_barrier(&free[turn.slot], turn.parity);
        copy_weight(at, turn.slot);
        copy_x(at, turn.slot);
        turn.advance(a.stages);
      }
    }
    __syncwarp();
    if (split) {
      synchronize_cluster();
      synchronize_cluster();
    }
    return;
  }

  wait_for_previous();
  float sums[4 * kGroups];
  // Eight rows of activations: this thread has two of them, and two rows of the weight.
  const auto store = [&](int32_t tile, int group, float4 sum) {
    const int m = 8 * group + 2 * (lane % 4);
    a.out.at(m, 0, [&](auto* out) {
      const bool there[2] = {m < a.x_rows, m + 1 < a.x_rows};
      auto* const next = out + a.out.stride;
      if (a.gate != Gate::kNone) {
        const int32_t n = tile * (kTileRows / 2) + warp * kGateRows + lane / 4;
        if (n >= a.out_cols) return;
        if (there[0]) put(out + n, gated(a.gate, sum.x, sum.z));
        if (there[1]) put(next + n, gated(a.gate, sum.y, sum.w));
        return;
      }
      const int32_t n = tile * kTileRows + warp * 16 + lane / 4;
      const bool first = n < a.out_cols, second = n + 8 < a.out_cols;
      if (a.add) {
        if (there[0] && first) sum.x += get(out + n);
        if (there[1] && first) sum.y += get(next + n);
        if (there[0] && second) sum.z += get(out + n + 8);
        if (there[1] && second) sum.w += get(next + n + 8);
      }
      if (there[0] && first) put(out + n, sum.x);
      if (there[1] && first) put(next + n, sum.y);
      if (there[0] && second) put(out + n + 8, sum.z);
      if (there[1] && second) put(next + n + 8, sum.w);
    });
  };

  Turn turn;
  for (; place.there(); place.tile += place.step) {
    for (int32_t chunk = place.first; chunk < place.end; ++chunk) {
      const std::byte* stage = stages + turn.slot * kStageBytes<kXRows>;
      const uint64_t w_at = k_major(stage + warp / 4 * kInstructionRows * kChunk * 2);
      const uint64_t x_at = k_major(stage + kTileBytes);
      wait_barrier(&full[turn.slot], turn.parity);
      fence_wgmma();
#pragma unroll
      for (int k = 0; k < kChunk / 16; ++k)
        wgmma_shared(sums, w_at + k * 2, x_at + k * 2, chunk > place.first || k > 0);
      end_wgmma();
      wait_wgmma<0>(sums);
      if (lane == 0) arrive(&free[turn.slot]);
      turn.advance(a.stages);
    }
    if (!split) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        store(place.tile, i, {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]});
    }
  }
  if (split) {  // one tile, whose inputs have all been multiplied by now: the ring is free
    auto* const own = reinterpret_cast<float4*>(stages);
    wait_named(1, kMultiplierThreads);
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
      own[i * kMultiplierThreads + threadIdx.x] = {
          sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
    synchronize_cluster();
    for (int i = blockIdx.y; i < kGroups; i += gridDim.y) {
      float4 parts[kMostSplits];
#pragma unroll
      for (unsigned rank = 0; rank < kMostSplits; ++rank)
        if (rank < gridDim.y)
          parts[rank] = of_block(own, rank)[i * kMultiplierThreads + threadIdx.x];
      float4 sum = parts[0];
#pragma unroll
      for (unsigned rank = 1; rank < kMostSplits; ++rank)
        if (rank < gridDim.y) {
          sum.x += parts[rank].x;
          sum.y += parts[rank].y;
          sum.z += parts[rank].z;
          sum.w += parts[rank].w;
        }
      store(static_cast<int32_t>(blockIdx.x), i, sum);
    }
    synchronize_cluster();  // what others read stays
  }
#endif
}

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

// Blocks of a cluster: as many as leave every tile of the weight a cluster that runs at once.
template <int kXRows>
int32_t splits_of(int32_t tiles, int32_t chunks, size_t shared, int32_t num_processors) {
  if (2 * tiles > num_processors) return 1;
  static const std::array<int32_t, kMostSplits + 1> most_clusters = [&] {
    std::array<int32_t, kMostSplits + 1> most{};
    for (unsigned size = 2; size <= kMostSplits; size *= 2) {
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(1, size);
      config.blockDim = dim3(kThreads);
      config.dynamicSmemBytes = shared;
      cudaLaunchAttribute cluster{};
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = cluster.val.clusterDim.z = 1;
      cluster.val.clusterDim.y = size;
      config.attrs = &cluster;
      config.numAttrs = 1;
      HW_CUDA(cudaOccupancyMaxActiveClusters(&most[size], half_rows_kernel<kXRows>, &config));
    }
    return most;
  }();
  int32_t splits = 1;
  while (2 * splits <= std::min(kMostSplits, chunks) &&
         tiles <= std::min(most_clusters[2 * splits], num_processors / (2 * splits)))
    splits *= 2;
  return splits;
}

template <int kXRows>
void run(const CudaWeight::Part& part,
         const FusedLinear& product,
         bool add,
         int32_t num_processors,
         const Stream& stream) {
  const Matrix& x = product.x;
  const bool gates = product.gate != Gate::kNone;
  const auto rows = static_cast<uint64_t>(part.rows), cols = static_cast<uint64_t>(part.cols);
  const auto row_bytes = static_cast<uint64_t>(part.row_bytes);
  constexpr auto kType = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  // Rows of the gate and rows that they gate in turns of eight: a thread's two rows.
  const CUtensorMap w_map =
      gates ? tensor_map<4>(kType,
                            part.data,
                            {cols, kGateRows, 2, rows / 2 / kGateRows},
                            {row_bytes, rows / 2 * row_bytes, kGateRows * row_bytes},
                            {kChunk, kGateRows, 2, kTileRows / 2 / kGateRows})
            : tensor_map<2>(kType, part.data, {cols, rows}, {row_bytes}, {kChunk, kTileRows});
  const CUtensorMap x_map = tensor_map<2>(kType,
                                          x.data,
                                          {cols, static_cast<uint64_t>(x.rows)},
                                          {static_cast<uint64_t>(x.stride) * 2},
                                          {kChunk, kXRows});
  constexpr int kRoom = 227 * 1024 - kSwizzleAlign - 1024;
  constexpr int kStages = std::min(kMostStages, kRoom / kStageBytes<kXRows>);
  HalfRows args{};
  args.tiles = ceil_div(part.rows, kTileRows);
  args.chunks = ceil_div(part.cols, kChunk);
  args.out_cols = static_cast<int32_t>(gates ? part.rows / 2 : part.rows);
  args.x_rows = static_cast<int32_t>(x.rows);
  args.out = Activations(product.out);
  args.add = add;
  args.gate = product.gate;
  args.stages = kStages;
  const auto shared = static_cast<size_t>(kStages * kStageBytes<kXRows> + kSwizzleAlign);
  const auto kernel = half_rows_kernel<kXRows>;
  HW_CUDA(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  const int32_t splits = splits_of<kXRows>(args.tiles, args.chunks, shared, num_processors);
  launch_clusters(stream,
                  kernel,
                  dim3(static_cast<unsigned>(std::min(args.tiles, num_processors / splits)),
                       static_cast<unsigned>(splits)),
                  dim3(1, static_cast<unsigned>(splits)),
                  kThreads,
                  shared,
                  args,
                  w_map,
                  x_map);
}

// Of the code that this device runs, only sm_90a's has a body, which takes shared memory.
bool is_compiled() {
  static const bool compiled = [] {
    cudaFuncAttributes attributes{};
    HW_CUDA(cudaFuncGetAttributes(&attributes, half_rows_kernel<8>));
    return attributes.sharedSizeBytes > 0;
  }();
  return compiled;
}

}  // namespace

bool can_run_half_rows(const CudaWeight::Part& part, int64_t x_rows) {
  return part.format == QuantFormat::kF16 && part.cols % 8 == 0 && x_rows >= kFewestXRows &&
         x_rows <= kMostXRows && is_compiled();
}

bool can_gate_half_rows(const CudaWeight::Part& part, int64_t x_rows) {
  return can_run_half_rows(part, x_rows) && part.rows % (2 * kGateRows) == 0;
}

void half_rows(const CudaWeight::Part& part,
               const FusedLinear& product,
               bool add,
               int32_t num_processors,
               const Stream& stream) {
  const int64_t rows = product.x.rows;
  const auto with = rows <= 8 ? run<8> : run<16>;
  with(part, product, add, num_processors, stream);
}

}  // namespace headwater::cuda
