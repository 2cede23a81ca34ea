// Some rows of activations times an F16 weight on Hopper: bound by the weight's bytes. The weight
// is the instruction's A, all of the activations its B; a warp asks the copy engine for tiles of
// both, a ring of them ahead of the two warpgroups that multiply. The ring fills with weights while
// the kernels in front still run.
//
// A block has one tile of the weight and a processor for itself. Where there are few tiles,
// clusters of blocks split the inputs and add up their sums in each other's shared memory.
#include <algorithm>

#include "kernels/base/launch_cuda.cuh"
#include "kernels/base/tensor_map_cuda.cuh"
#include "kernels/linear/few_rows_cuda.cuh"
#include "kernels/linear/half_rows_cuda.cuh"
#include "kernels/linear/some_rows_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kMostXRows = 64;
constexpr int kChunk = 64;  // inputs at a time: 128 bytes
constexpr int kTileBytes = kTileRows * kChunk * 2;
constexpr int kStages = 8;

template <int kXRows>
struct Ring {
  static constexpr int kStageBytes = kTileBytes + kXRows * kChunk * 2;
  static constexpr int kBytes = kStages * kStageBytes + kSwizzleAlign;
  static_assert(sums_bytes(kXRows) <= kStages * kStageBytes);
};

// Block (tile, split of the inputs). kXRows: of activations, the last ones maybe zeros.
template <int kXRows>
__global__ void __launch_bounds__(kSomeRowsThreads, 2)  // few registers: others need some, too
    half_rows_kernel(Output o,
                     int32_t chunks,
                     const __grid_constant__ CUtensorMap w_map,
                     const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using R = Ring<kXRows>;
  extern __shared__ std::byte dynamic[];
  __shared__ uint64_t full[kStages], free[kStages];
  std::byte* const stages = align_swizzle(dynamic);
  start_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto tile = static_cast<int32_t>(blockIdx.x);
  const Share share(chunks, blockIdx.y, gridDim.y);
  const int32_t ahead = min(kStages, share.end - share.begin);
  const bool split = gridDim.y > 1, copies = threadIdx.x == kMultiplierThreads;
  const auto copy_weight = [&](int32_t chunk, int slot) {
    std::byte* to = stages + slot * R::kStageBytes;
    arrive_expecting(&full[slot], R::kStageBytes);
    if (o.gate == Gate::kNone)
      copy_box_once(to, w_map, chunk * kChunk, tile * kTileRows, &full[slot]);
    else
      copy_box_once(
          to, w_map, chunk * kChunk, 0, 0, tile * kTileRows / (2 * kGateRows), &full[slot]);
  };
  const auto copy_x = [&](int32_t chunk, int slot) {
    copy_box(stages + slot * R::kStageBytes + kTileBytes, x_map, chunk * kChunk, 0, &full[slot]);
  };
  if (copies) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(&full[s], 1);
      init_barrier(&free[s], kMultiplierThreads / 32);
    }
    publish_barriers();
    for (int32_t i = 0; i < ahead; ++i) copy_weight(share.begin + i, i);
    prefetch_map(x_map);
  }
  __syncthreads();

  if (warp == kMultiplierThreads / 32) {
    if (copies) {
      wait_for_previous();
      for (int32_t i = 0; i < ahead; ++i) copy_x(share.begin + i, i);
      Turn turn;
      for (int32_t chunk = share.begin + ahead; chunk < share.end; ++chunk) {
        wait_barrier(&free[turn.slot], turn.parity);
        copy_weight(chunk, turn.slot);
        copy_x(chunk, turn.slot);
        turn.advance(kStages);
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
  float sums[kXRows / 2];
  Turn turn;
  for (int32_t chunk = share.begin; chunk < share.end; ++chunk) {
    const std::byte* stage = stages + turn.slot * R::kStageBytes;
    const uint64_t w_at = k_major(stage + warp / 4 * (kTileBytes / 2));
    const uint64_t x_at = k_major(stage + kTileBytes);
    wait_barrier(&full[turn.slot], turn.parity);
    fence_wgmma();
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k)
      wgmma_shared(sums, w_at + k * 2, x_at + k * 2, chunk > share.begin || k > 0);
    end_wgmma();
    wait_wgmma<0>(sums);
    if (lane == 0) arrive(&free[turn.slot]);
    turn.advance(kStages);
  }
  auto* const kept = reinterpret_cast<float*>(stages);  // all inputs have been multiplied
  wait_named(1, kMultiplierThreads);
  keep_sums(sums, kept);
  if (split) {
    synchronize_cluster();
  } else {
    wait_named(1, kMultiplierThreads);
  }
  write_sums(o, kept, tile);
  if (split) synchronize_cluster();  // what others read stays
#endif
}

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

template <int kXRows>
void run(const CudaWeight::Part& part, const FusedLinear& product, bool add, const Stream& stream) {
  const Matrix& x = product.x;
  const auto rows = static_cast<uint64_t>(part.rows), cols = static_cast<uint64_t>(part.cols);
  const auto row_bytes = static_cast<uint64_t>(part.row_bytes);
  constexpr auto kType = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  // Rows of the gate and rows that they gate in turns of eight.
  const CUtensorMap w_map =
      product.gate != Gate::kNone
          ? tensor_map<4>(kType,
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
  constexpr auto kKernel = half_rows_kernel<kXRows>;
  constexpr int kBytes = Ring<kXRows>::kBytes;
  HW_CUDA(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int32_t tiles = ceil_div(part.rows, kTileRows), chunks = ceil_div(part.cols, kChunk);
  const auto splits = static_cast<unsigned>(splits_of<kKernel>(tiles, chunks, kBytes));
  launch_clusters(stream,
                  kKernel,
                  dim3(static_cast<unsigned>(tiles), splits),
                  dim3(1, splits),
                  kSomeRowsThreads,
                  kBytes,
                  Output(product.out, part.rows, product.gate, add),
                  chunks,
                  w_map,
                  x_map);
}

}  // namespace

bool can_run_half_rows(const CudaWeight::Part& part, int64_t x_rows) {
  return part.format == QuantFormat::kF16 && part.cols % 8 == 0 &&
         x_rows > most_few_rows(part.format) && x_rows <= kMostXRows &&
         has_body<half_rows_kernel<8>>();
}

void half_rows(const CudaWeight::Part& part,
               const FusedLinear& product,
               bool add,
               const Stream& stream) {
  const int64_t rows = product.x.rows;
  const auto with = rows <= 8 ? run<8> : rows <= 16 ? run<16> : rows <= 32 ? run<32> : run<64>;
  with(part, product, add, stream);
}

}  // namespace headwater::cuda
