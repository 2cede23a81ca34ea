// What products of some rows of activations on Hopper have in common (half_rows_cuda.cu,
// block_rows_cuda.cu): tiles of 128 rows of the weight, two warpgroups that multiply and a warp
// that copies; clusters of blocks that split the inputs, and how sums leave a block. Device code.
#pragma once

#include <cooperative_groups.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/base/elements_cuda.cuh"
#include "kernels/base/wgmma_cuda.cuh"
#include "kernels/norm/rows_cuda.cuh"

namespace headwater::cuda {

constexpr int kTileRows = 128;  // of the weight
constexpr int kMultiplierThreads = 256;
constexpr int kSomeRowsThreads = kMultiplierThreads + 32;
constexpr int kGateRows = 8;    // of the gate, then as many that they gate, in turns
constexpr int kMostSplits = 8;  // blocks of a cluster

// Piece `split` of the inputs, of which there are count.
struct Share {
  int32_t begin, end;
  __device__ Share(int32_t count, unsigned split, unsigned splits)
      : begin(static_cast<int32_t>(count * split / splits)),
        end(static_cast<int32_t>(count * (split + 1) / splits)) {}
};

// Where the sums of a tile go. They leave through shared memory: loops over it are little code, and
// a block comes here once, when its code is not in any cache.
struct Output {
  Activations out;
  int32_t cols, x_rows;
  bool add, vectors;  // vectors: fours may be stored at once
  Gate gate;

  Output(Matrix to, int64_t rows, Gate of, bool adds)
      : out(to),
        cols(static_cast<int32_t>(of == Gate::kNone ? rows : rows / 2)),
        x_rows(static_cast<int32_t>(to.rows)),
        add(adds),
        vectors(reinterpret_cast<uintptr_t>(to.data) % 16 == 0 && to.stride % 4 == 0 &&
                cols % 4 == 0),
        gate(of) {}
};

constexpr int kSumsPitch = kTileRows + 4;  // floats: of one row of activations
constexpr int sums_bytes(int x_rows) { return x_rows * kSumsPitch * int{sizeof(float)}; }

// A thread's sums as wgmma has them to [x row, tile row].
template <int kSums>
__device__ inline void keep_sums(const float (&sums)[kSums], float* kept) {
  const int lane = threadIdx.x % 32;
  float* to = kept + 2 * (lane % 4) * kSumsPitch + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kSums; ++i) to[(i / 4 * 8 + i % 2) * kSumsPitch + i / 2 % 2 * 8] = sums[i];
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ inline float4 sum_of_cluster(const float4* kept) {
  const auto cluster = cooperative_groups::this_cluster();
  float4 parts[kMostSplits];
#pragma unroll
  for (unsigned rank = 0; rank < kMostSplits; ++rank)
    if (rank < gridDim.y) parts[rank] = *cluster.map_shared_rank(kept, rank);
  float4 sum = parts[0];
#pragma unroll
  for (unsigned rank = 1; rank < kMostSplits; ++rank)
    if (rank < gridDim.y)
      sum = {sum.x + parts[rank].x,
             sum.y + parts[rank].y,
             sum.z + parts[rank].z,
             sum.w + parts[rank].w};
  return sum;
}

// The tile's sums to the output, or this block's rows of them, by the threads that multiply.
__device__ inline void write_sums(const Output& o, const float* kept, int32_t tile) {
  const bool gates = o.gate != Gate::kNone, split = gridDim.y > 1;
  const int lanes = gates ? 16 : 32;  // of a row
  const int at = static_cast<int>(threadIdx.x) % lanes * 4;
  const int place = gates ? at / kGateRows * 2 * kGateRows + at % kGateRows : at;
  const int32_t n = tile * (gates ? kTileRows / 2 : kTileRows) + at;
  if (n >= o.cols) return;
  const int rows = kMultiplierThreads / lanes;
#pragma unroll 1
  for (auto m = static_cast<int32_t>(blockIdx.y * rows + threadIdx.x / lanes); m < o.x_rows;
       m += static_cast<int32_t>(gridDim.y) * rows) {
    const auto fours = [&](int behind) {
      const auto* from = reinterpret_cast<const float4*>(kept + m * kSumsPitch + place + behind);
      return split ? sum_of_cluster(from) : *from;
    };
    o.out.at(m, n, [&](auto* to) {
      float4 before = {0, 0, 0, 0};
      if (o.add && o.vectors) before = get4(to);
      float4 v = fours(0);
      if (gates) {
        const float4 value = fours(kGateRows);
        v = {gated(o.gate, v.x, value.x),
             gated(o.gate, v.y, value.y),
             gated(o.gate, v.z, value.z),
             gated(o.gate, v.w, value.w)};
      }
      if (o.vectors)
        return put4(to, {v.x + before.x, v.y + before.y, v.z + before.z, v.w + before.w});
      const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (n + i < o.cols) put(to + i, o.add ? get(to + i) + values[i] : values[i]);
    });
  }
}

__device__ inline void synchronize_cluster() {
  __syncwarp();
  cooperative_groups::this_cluster().sync();
}
#endif

// Blocks of a cluster: as many as leave every tile of the weight a cluster that runs at once.
template <auto kKernel>
int32_t splits_of(int32_t tiles, int32_t pieces, int shared_bytes) {
  static const std::array<int, kMostSplits + 1> most_clusters = [&] {
    std::array<int, kMostSplits + 1> most{};
    for (unsigned size = 2; size <= kMostSplits; ++size) {
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(1, size);
      config.blockDim = dim3(kSomeRowsThreads);
      config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
      cudaLaunchAttribute cluster{};
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = cluster.val.clusterDim.z = 1;
      cluster.val.clusterDim.y = size;
      config.attrs = &cluster;
      config.numAttrs = 1;
      HW_CUDA(cudaOccupancyMaxActiveClusters(&most[size], kKernel, &config));
    }
    return most;
  }();
  int32_t splits = std::min(kMostSplits, pieces);
  while (splits > 1 && tiles > most_clusters[splits]) --splits;
  return splits;
}

}  // namespace headwater::cuda
