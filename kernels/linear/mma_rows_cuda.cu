// Some rows of activations on tensor cores: blocks are decoded to f16 in registers, on their way
// from shared memory to the instruction. A warp has 32 rows of the weight (the instruction's A) and
// all of the activations (its B), which a block's warps share.
//
// Where the weight has too few rows for all processors, a cluster of blocks splits the inputs, and
// adds up its partial sums in each other's shared memory.
#include <cooperative_groups.h>

#include <algorithm>

#include "kernels/base/elements_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/linear/mma_rows_cuda.cuh"
#include "kernels/linear/stage_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kTileRows = 16;  // of the weight, in one instruction
constexpr int kTiles = 2;      // of a warp: both use the activations that one load brings
constexpr int kWarpRows = kTiles * kTileRows;
constexpr int kMostWarps = 8;
constexpr int kXTileRows = 8;  // of activations, in one instruction
constexpr int kMostXRows = 64;
constexpr int kStageElements = 256;
constexpr int kStageRuns = kStageElements / kRunElements;
constexpr int kQuadElements = 4 * kRunElements;  // a run for each of the four lanes of a row
// Rows of activations lie so that eight lanes, four of two rows, find sixteen bytes each in banks
// of their own.
constexpr int kXPitch = 2 * kStageElements + 64;
constexpr int kMostSlots = 4;
constexpr int kMostSplits = 8;  // blocks of a cluster
constexpr int64_t kSharedBytes = 224 * 1024;
struct MmaRows {
  const uint8_t* w;
  int64_t w_row_bytes;
  int32_t w_rows, cols;
  const __half* x;
  int64_t x_stride;
  int32_t x_rows;
  Activations out;
  bool add;
  int32_t slots;  // stages in shared memory
};

template <QuantFormat kFormat>
struct Slot {  // of one stage: the warps' rows of the weight, then the activations
  using S = Stage<kFormat, kStageElements>;
  // Two rows' lanes read at once, from different banks.
  static constexpr int kPitch = S::kBytes | 16;
  static constexpr int kWarpBytes = kWarpRows * kPitch;
  static __host__ __device__ int bytes(int warps, int x_tiles) {
    return warps * kWarpBytes + x_tiles * kXTileRows * kXPitch;
  }
};

// In f32, transposed to the order of the output: [activation row, weight row of the block].
__host__ __device__ constexpr int partial_pitch(int warps) { return warps * kWarpRows + 4; }

__device__ inline void wait_for_stage(int slots) {
  if (slots == 2) {
    wait_for_groups<0>();
  } else if (slots == 3) {
    wait_for_groups<1>();
  } else {
    wait_for_groups<2>();
  }
}

__device__ inline void synchronize_cluster() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#endif
}
__device__ inline const float* of_block(float* shared, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
#else
  return shared;
#endif
}

// Block (rows of the weight, split of the inputs).
// kXTiles: of activations, the last ones partly or wholly zeros.
template <QuantFormat kFormat, int kXTiles>
__global__ void __launch_bounds__(32 * kMostWarps, 1) mma_rows_kernel(MmaRows a) {
  using L = Slot<kFormat>;
  constexpr int kXAtOnce = kXTiles < 4 ? kXTiles : 4;
  extern __shared__ uint4 shared[];
  auto* slots = reinterpret_cast<uint8_t*>(shared);
  const int warps = static_cast<int>(blockDim.x / 32);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = lane / 4, quad = lane % 4;  // of an instruction's operands
  const int slot_bytes = L::bytes(warps, kXTiles);
  const auto block_row = static_cast<int32_t>(blockIdx.x * warps * kWarpRows);
  const int32_t runs = a.cols / kRunElements;
  const int32_t stages = (runs + kStageRuns - 1) / kStageRuns;
  const auto begin = static_cast<int32_t>(stages * blockIdx.y / gridDim.y);
  const auto end = static_cast<int32_t>(stages * (blockIdx.y + 1) / gridDim.y);

  const auto copy_weight = [&](int32_t stage) {
    if (stage < end)
      L::S::template copy<kWarpRows>(
          a.w,
          a.w_row_bytes,
          a.w_rows,
          a.cols / planes_of(kFormat).elements,
          block_row + warp * kWarpRows,
          stage,
          slots + (stage - begin) % a.slots * slot_bytes + warp * L::kWarpBytes,
          L::kPitch,
          lane);
  };
  // Sixteen bytes each: a fourth of a run of one lane. Those that the four lanes of a row load at
  // once lie side by side.
  const auto copy_x = [&](int32_t stage) {
    if (stage < end) {
      uint8_t* to = slots + (stage - begin) % a.slots * slot_bytes + warps * L::kWarpBytes;
      constexpr int kPieces = 2 * kStageElements / 16;
      for (int i = threadIdx.x; i < kXTiles * kXTileRows * kPieces; i += blockDim.x) {
        const int m = i / kPieces, piece = i % kPieces;
        const int place = piece / 16 * 16 + piece % 4 * 4 + piece % 16 / 4;
        const int32_t c = stage * kStageElements + 8 * piece;
        const bool there = m < a.x_rows && c < a.cols;
        copy_async(to + m * kXPitch + 16 * place, there ? a.x + m * a.x_stride + c : a.x, there);
      }
    }
    end_group();
  };

  start_next();
  for (int ahead = 0; ahead < a.slots - 1; ++ahead) copy_weight(begin + ahead);
  wait_for_previous();
  for (int ahead = 0; ahead < a.slots - 1; ++ahead) copy_x(begin + ahead);

  float sums[kTiles][kXTiles][4] = {};
  for (int32_t stage = begin; stage < end; ++stage) {
    wait_for_stage(a.slots);
    __syncthreads();  // this stage is there, and nobody reads the one before it any more
    copy_weight(stage + a.slots - 1);
    copy_x(stage + a.slots - 1);
    const uint8_t* slot = slots + (stage - begin) % a.slots * slot_bytes;
#pragma unroll 1
    for (int part = 0; part < kStageElements / kQuadElements; ++part) {
      const int run = 4 * part + quad;
      uint2 w[kTiles][2][kRunElements / 4];  // rows group and group + 8 of a tile
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = warp * kWarpRows + tile * kTileRows + 8 * h + group;
          const bool there = stage * kStageRuns + run < runs;
          if (there) {
            const auto r = Run<kFormat>::of({slot + row * L::kPitch, L::S::kBlocks}, run);
#pragma unroll
            for (int i = 0; i < kRunElements / 4; ++i) w[tile][h][i] = halves_of(r, i);
          } else {
#pragma unroll
            for (int i = 0; i < kRunElements / 4; ++i) w[tile][h][i] = {0, 0};
          }
        }
      }
      const uint8_t* x =
          slot + warps * L::kWarpBytes + group * kXPitch + 16 * quad + part * 2 * kQuadElements;
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // eight elements of every lane's run
#pragma unroll
        for (int first = 0; first < kXTiles; first += kXAtOnce) {
          uint4 b[kXAtOnce];
#pragma unroll
          for (int m = 0; m < kXAtOnce; ++m)
            b[m] = words_at(x + (first + m) * kXTileRows * kXPitch + 64 * i);
#pragma unroll
          for (int h = 0; h < 2; ++h) {  // four elements; sums that wait for each other lie apart
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
              const uint2 low = w[tile][0][2 * i + h], high = w[tile][1][2 * i + h];
#pragma unroll
              for (int m = 0; m < kXAtOnce; ++m)
                multiply<__half>(sums[tile][first + m],
                                 {low.x, high.x, low.y, high.y},
                                 h == 0 ? b[m].x : b[m].z,
                                 h == 0 ? b[m].y : b[m].w);
            }
          }
        }
      }
    }
  }

  __syncthreads();
  auto* partial = reinterpret_cast<float*>(shared);
  const int pitch = partial_pitch(warps);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int m = 0; m < kXTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        partial[(m * kXTileRows + 2 * quad + i % 2) * pitch + warp * kWarpRows + tile * kTileRows +
                8 * (i / 2) + group] = sums[tile][m][i];
    }
  }
  const bool split = gridDim.y > 1;
  if (split) {
    synchronize_cluster();
  } else {
    __syncthreads();
  }
  for (auto m = static_cast<int32_t>(blockIdx.y * warps + warp); m < a.x_rows;
       m += static_cast<int32_t>(gridDim.y * warps)) {
    for (int n = lane; n < warps * kWarpRows && block_row + n < a.w_rows; n += 32) {
      float sum = 0;
      for (unsigned rank = 0; rank < gridDim.y; ++rank)
        sum += (split ? of_block(partial, rank) : partial)[m * pitch + n];
      const int64_t at = block_row + n;
      a.out.put(m, at, a.add ? a.out.get(m, at) + sum : sum);
    }
  }
  if (split) synchronize_cluster();  // what others read stays
}

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

template <QuantFormat kFormat, int kXTiles>
void launch_mma_rows(MmaRows a, int32_t num_processors, const Stream& stream) {
  using L = Slot<kFormat>;
  const int32_t warp_tiles = ceil_div(a.w_rows, kWarpRows);
  const int32_t stages = ceil_div(a.cols, kStageElements);
  int32_t splits = 1;
  while (stream.overlaps() && 2 * splits <= std::min(kMostSplits, stages) &&
         ceil_div(warp_tiles, kMostWarps) * 2 * splits <= num_processors)
    splits *= 2;
  const int64_t limit = std::min(kSharedBytes, max_shared_bytes());
  const auto most_warps =
      static_cast<int32_t>((limit / 2 - L::bytes(0, kXTiles)) / L::kWarpBytes);  // of two slots
  const int32_t warps = std::clamp(ceil_div(warp_tiles * splits, num_processors),
                                   1,
                                   std::clamp(most_warps, 1, int32_t{kMostWarps}));
  const int64_t slot_bytes = L::bytes(warps, kXTiles);
  a.slots = static_cast<int32_t>(std::clamp<int64_t>(limit / slot_bytes, 2, kMostSlots));
  const int64_t partial_bytes = int64_t{4} * kXTiles * kXTileRows * partial_pitch(warps);
  const auto shared = static_cast<size_t>(std::max(a.slots * slot_bytes, partial_bytes));
  const auto kernel = mma_rows_kernel<kFormat, kXTiles>;
  HW_CUDA(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  launch_clusters(
      stream,
      kernel,
      dim3(static_cast<unsigned>(ceil_div(warp_tiles, warps)), static_cast<unsigned>(splits)),
      dim3(1, static_cast<unsigned>(splits)),
      32 * warps,
      shared,
      a);
}

}  // namespace

bool can_run_mma_rows(const CudaWeight::Part& part, int64_t x_rows) {
  return planes_of(part.format).elements > 1 && x_rows <= kMostXRows;
}

void mma_rows(const CudaWeight::Part& part,
              Matrix x,
              Matrix out,
              bool add,
              int32_t num_processors,
              const Stream& stream) {
  with_format(part.format, [&](auto format) {
    constexpr QuantFormat kFormat = decltype(format)::value;
    if constexpr (planes_of(kFormat).elements > 1) {
      const MmaRows args{part.data,
                         part.row_bytes,
                         static_cast<int32_t>(part.rows),
                         static_cast<int32_t>(part.cols),
                         static_cast<const __half*>(x.data),
                         x.stride,
                         static_cast<int32_t>(x.rows),
                         Activations(out),
                         add,
                         0};
      if (out.rows <= 16) return launch_mma_rows<kFormat, 2>(args, num_processors, stream);
      if (out.rows <= 32) return launch_mma_rows<kFormat, 4>(args, num_processors, stream);
      launch_mma_rows<kFormat, 8>(args, num_processors, stream);
    }
  });
}

}  // namespace headwater::cuda
