// Some rows of activations times block formats on Hopper. As half_rows_cuda.cu, but the weight is
// the instruction's A in registers, decoded to f16 from rows that each warp copies for itself; a
// warp asks the copy engine for the activations.
//
// A lane decodes a run of 32 elements at once, the four lanes of a row 128 elements; so the
// activations lie in that order (arrange_kernel).
#include <cooperative_groups.h>

#include <algorithm>
#include <array>

#include "kernels/base/elements_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/base/tensor_map_cuda.cuh"
#include "kernels/base/wgmma_cuda.cuh"
#include "kernels/linear/block_rows_cuda.cuh"
#include "kernels/linear/stage_cuda.cuh"
#include "kernels/norm/rows_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kFewestXRows = 5;
constexpr int kMostXRows = 64;
constexpr int kWarpRows = 16;  // of the weight: a warp's part of an instruction's 64
constexpr int kMultipliers = 2;
constexpr int kTileRows = 64 * kMultipliers;
constexpr int kMultiplierThreads = 128 * kMultipliers;
constexpr int kWarps = kMultiplierThreads / 32;
constexpr int kThreads = kMultiplierThreads + 32;
constexpr int kRegisterThreads = 512;  // 128 registers each: the next kernels' blocks need some
constexpr int kStageElements = 256;
constexpr int kStageRuns = kStageElements / kRunElements;
constexpr int kQuadElements = 4 * kRunElements;
constexpr int kBox = 64;  // inputs: 128 bytes
constexpr int kXStages = 2;
constexpr int kMostSlots = 8;
constexpr int kMostSplits = 8;
constexpr int kSharedBytes = 224 * 1024;
constexpr int kArrangeThreads = 128;

struct BlockRows {
  const uint8_t* w;
  int64_t w_row_bytes;
  int32_t w_rows, cols;
  int32_t tiles, stages;
  int32_t x_rows;
  Activations out;
  bool add;
};

template <QuantFormat kFormat, int kXRows>
struct Shape {
  using S = Stage<kFormat, kStageElements>;
  static constexpr int kPitch = S::kBytes | 16;
  static constexpr int kWarpBytes = kWarpRows * kPitch;
  static constexpr int kXBytes = kXRows * kStageElements * 2;
  static constexpr int kRoom = kSharedBytes - kSwizzleAlign - kXStages * kXBytes;
  static constexpr int kSlots = std::min(kMostSlots, kRoom / (kWarps * kWarpBytes));
  static constexpr int kBytes = kSwizzleAlign + kXStages * kXBytes + kSlots * kWarps * kWarpBytes;
  static_assert(kSlots >= 2);
};

struct Turn {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    slot = slot + 1 == kXStages ? 0 : slot + 1;
    if (slot == 0) parity ^= 1;
  }
};

struct Place {
  int32_t tile, step, tiles;
  int32_t first, end, stage;

  __device__ Place(const BlockRows& a)
      : tile(blockIdx.x),
        step(gridDim.x),
        tiles(a.tiles),
        first(static_cast<int32_t>(a.stages * blockIdx.y / gridDim.y)),
        end(static_cast<int32_t>(a.stages * (blockIdx.y + 1) / gridDim.y)),
        stage(first) {}
  __device__ bool there() const { return tile < tiles; }
  __device__ void advance() {
    if (++stage < end) return;
    stage = first;
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

// x as f16, of every 128 inputs 16 together that one instruction takes: of four runs four each.
// Zeros behind the end. Block (row, 128-input groups), a thread for sixteen.
template <typename T>
__global__ void __launch_bounds__(kArrangeThreads)
    arrange_kernel(const T* x, int64_t x_stride, int32_t cols, __half* out, int32_t out_cols) {
  start_next();
  wait_for_previous();
  const auto sixteen = static_cast<int32_t>(blockIdx.y * kArrangeThreads + threadIdx.x);
  if (sixteen * 16 >= out_cols) return;
  const int32_t first = sixteen / 8 * kQuadElements + sixteen % 8 * 4;
  const T* row = x + blockIdx.x * x_stride;
  uint32_t words[8];
#pragma unroll
  for (int quad = 0; quad < 4; ++quad) {
    const int32_t c = first + quad * kRunElements;
    const float4 v = c < cols ? get4(row + c) : float4{0, 0, 0, 0};
    words[quad] = pack<__half>(saturate(v.x), saturate(v.y));
    words[4 + quad] = pack<__half>(saturate(v.z), saturate(v.w));
  }
  auto* to = reinterpret_cast<uint4*>(out + blockIdx.x * int64_t{out_cols} + sixteen * 16);
  to[0] = {words[0], words[1], words[2], words[3]};
  to[1] = {words[4], words[5], words[6], words[7]};
}

template <QuantFormat kFormat, int kXRows>
__global__ void __launch_bounds__(kRegisterThreads, 1)
    block_rows_kernel(BlockRows a, const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using S = Shape<kFormat, kXRows>;
  constexpr int kGroups = kXRows / 8;
  extern __shared__ std::byte dynamic[];
  __shared__ uint64_t full[kXStages], free[kXStages];
  std::byte* const x_stages = align_swizzle(dynamic);
  start_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool split = gridDim.y > 1;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kXStages; ++s) {
      init_barrier(&full[s], 1);
      init_barrier(&free[s], kWarps);
    }
    publish_barriers();
  }
  __syncthreads();
  Place place(a);

  if (warp == kWarps) {
    if (lane == 0) {
      wait_for_previous();
      Turn turn;
      for (Place at = place; at.there(); at.advance()) {
        wait_barrier(&free[turn.slot], turn.parity ^ 1);
        arrive_expecting(&full[turn.slot], S::kXBytes);
#pragma unroll
        for (int box = 0; box < kStageElements / kBox; ++box)
          copy_box(x_stages + turn.slot * S::kXBytes + box * kXRows * 128,
                   x_map,
                   at.stage * kStageElements + box * kBox,
                   0,
                   &full[turn.slot]);
        turn.advance();
      }
    }
    __syncwarp();
    if (split) {
      synchronize_cluster();
      synchronize_cluster();
    }
    return;
  }

  auto* const slots = reinterpret_cast<uint8_t*>(x_stages + kXStages * S::kXBytes) +
                      warp * S::kSlots * S::kWarpBytes;
  const int group = lane / 4, quad = lane % 4;
  const int32_t runs = a.cols / kRunElements;
  Place ahead = place;
  int ahead_slot = 0;
  const auto copy_ahead = [&] {
    if (ahead.there()) {
      S::S::template copy<kWarpRows>(a.w,
                                     a.w_row_bytes,
                                     a.w_rows,
                                     a.cols / planes_of(kFormat).elements,
                                     ahead.tile * kTileRows + warp * kWarpRows,
                                     ahead.stage,
                                     slots + ahead_slot * S::kWarpBytes,
                                     S::kPitch,
                                     lane);
      ahead.advance();
      ahead_slot = ahead_slot + 1 == S::kSlots ? 0 : ahead_slot + 1;
    }
    end_group();
  };
  for (int i = 0; i < S::kSlots - 1; ++i) copy_ahead();
  wait_for_previous();

  float sums[4 * kGroups];
  const auto store = [&](int32_t tile, int of, float4 sum) {
    const int m = 8 * of + 2 * quad;
    const int32_t n = tile * kTileRows + warp * kWarpRows + group;
    a.out.at(m, n, [&](auto* out) {
      auto* const next = out + a.out.stride;
      const bool there[2] = {m < a.x_rows, m + 1 < a.x_rows};
      const bool first = n < a.w_rows, second = n + 8 < a.w_rows;
      if (a.add) {
        if (there[0] && first) sum.x += get(out);
        if (there[1] && first) sum.y += get(next);
        if (there[0] && second) sum.z += get(out + 8);
        if (there[1] && second) sum.w += get(next + 8);
      }
      if (there[0] && first) put(out, sum.x);
      if (there[1] && first) put(next, sum.y);
      if (there[0] && second) put(out + 8, sum.z);
      if (there[1] && second) put(next + 8, sum.w);
    });
  };

  Turn turn;
  int slot = 0;
  for (; place.there(); place.tile += place.step) {
    for (int32_t stage = place.first; stage < place.end; ++stage) {
      wait_for_groups<S::kSlots - 2>();
      __syncwarp();  // this stage is there, and no lane reads the one before it any more
      copy_ahead();
      const uint8_t* rows = slots + slot * S::kWarpBytes;
      const std::byte* x = x_stages + turn.slot * S::kXBytes;
#pragma unroll
      for (int part = 0; part < kStageElements / kQuadElements; ++part) {
        const int run = 4 * part + quad;
        uint32_t w[kRunElements / 4][4];
        if (stage * kStageRuns + run < runs) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const auto r =
                Run<kFormat>::of({rows + (8 * h + group) * S::kPitch, S::S::kBlocks}, run);
#pragma unroll
            for (int i = 0; i < kRunElements / 4; ++i) {
              const uint2 four = halves_of(r, i);
              w[i][h] = four.x;
              w[i][2 + h] = four.y;
            }
          }
        } else {
#pragma unroll
          for (int i = 0; i < kRunElements / 4; ++i)
#pragma unroll
            for (int k = 0; k < 4; ++k) w[i][k] = 0;
        }
        if (part == 0) wait_barrier(&full[turn.slot], turn.parity);
        fence_wgmma();
#pragma unroll
        for (int i = 0; i < kRunElements / 4; ++i)
          wgmma_registers(sums,
                          w[i],
                          k_major(x + (2 * part + i / 4) * kXRows * 128) + i % 4 * 2,
                          stage > place.first || part > 0 || i > 0);
        end_wgmma();
        wait_wgmma<0>(sums);
      }
      if (lane == 0) arrive(&free[turn.slot]);
      turn.advance();
      slot = slot + 1 == S::kSlots ? 0 : slot + 1;
    }
    if (!split) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        store(place.tile, i, {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]});
    }
  }
  if (split) {
    auto* const own = reinterpret_cast<float4*>(x_stages);
    wait_named(1, kMultiplierThreads);
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
      own[i * kMultiplierThreads + threadIdx.x] = {
          sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
    synchronize_cluster();
    for (auto i = static_cast<int>(blockIdx.y); i < kGroups; i += static_cast<int>(gridDim.y)) {
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
    synchronize_cluster();
  }
#endif
}

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

template <QuantFormat kFormat, int kXRows>
int32_t splits_of(int32_t tiles, int32_t stages, int32_t num_processors) {
  if (2 * tiles > num_processors) return 1;
  static const std::array<int32_t, kMostSplits + 1> most_clusters = [&] {
    std::array<int32_t, kMostSplits + 1> most{};
    for (unsigned size = 2; size <= kMostSplits; size *= 2) {
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(1, size);
      config.blockDim = dim3(kThreads);
      config.dynamicSmemBytes = Shape<kFormat, kXRows>::kBytes;
      cudaLaunchAttribute cluster{};
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = cluster.val.clusterDim.z = 1;
      cluster.val.clusterDim.y = size;
      config.attrs = &cluster;
      config.numAttrs = 1;
      HW_CUDA(
          cudaOccupancyMaxActiveClusters(&most[size], block_rows_kernel<kFormat, kXRows>, &config));
    }
    return most;
  }();
  int32_t splits = 1;
  while (2 * splits <= std::min(kMostSplits, stages) &&
         tiles <= std::min(most_clusters[2 * splits], num_processors / (2 * splits)))
    splits *= 2;
  return splits;
}

template <QuantFormat kFormat, int kXRows>
void run(const CudaWeight::Part& part,
         Matrix x,
         Matrix out,
         bool add,
         int32_t num_processors,
         const Stream& stream) {
  BlockRows args{};
  args.w = part.data;
  args.w_row_bytes = part.row_bytes;
  args.w_rows = static_cast<int32_t>(part.rows);
  args.cols = static_cast<int32_t>(part.cols);
  args.tiles = ceil_div(part.rows, kTileRows);
  args.stages = ceil_div(part.cols, kStageElements);
  args.x_rows = static_cast<int32_t>(x.rows);
  args.out = Activations(out);
  args.add = add;
  const CUtensorMap x_map =
      tensor_map<2>(CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                    x.data,
                    {static_cast<uint64_t>(x.cols), static_cast<uint64_t>(x.rows)},
                    {static_cast<uint64_t>(x.stride) * 2},
                    {kBox, kXRows});
  using S = Shape<kFormat, kXRows>;
  const auto kernel = block_rows_kernel<kFormat, kXRows>;
  HW_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes));
  const int32_t splits = splits_of<kFormat, kXRows>(args.tiles, args.stages, num_processors);
  launch_clusters(stream,
                  kernel,
                  dim3(static_cast<unsigned>(std::min(args.tiles, num_processors / splits)),
                       static_cast<unsigned>(splits)),
                  dim3(1, static_cast<unsigned>(splits)),
                  kThreads,
                  S::kBytes,
                  args,
                  x_map);
}

bool is_compiled() {
  static const bool compiled = [] {
    cudaFuncAttributes attributes{};
    HW_CUDA(cudaFuncGetAttributes(&attributes, block_rows_kernel<QuantFormat::kQ8_0, 16>));
    return attributes.sharedSizeBytes > 0;
  }();
  return compiled;
}

}  // namespace

bool can_run_block_rows(const CudaWeight::Part& part, int64_t x_rows) {
  return planes_of(part.format).elements > 1 && x_rows >= kFewestXRows && x_rows <= kMostXRows &&
         is_compiled();
}

int64_t arranged_bytes(int64_t cols) {
  return kMostXRows * int64_t{ceil_div(cols, kQuadElements)} * kQuadElements * 2;
}

Matrix arrange(Matrix x, void* scratch, const Stream& stream) {
  const auto cols = static_cast<int32_t>(ceil_div(x.cols, kQuadElements) * kQuadElements);
  with_element(x.dtype, [&](auto element) {
    using T = decltype(element);
    launch(stream,
           arrange_kernel<T>,
           dim3(static_cast<unsigned>(x.rows),
                static_cast<unsigned>(ceil_div(cols / 16, kArrangeThreads))),
           kArrangeThreads,
           0,
           static_cast<const T*>(x.data),
           x.stride,
           static_cast<int32_t>(x.cols),
           static_cast<__half*>(scratch),
           cols);
  });
  return {scratch, DType::kF16, x.rows, cols, cols};
}

void block_rows(const CudaWeight::Part& part,
                Matrix x,
                Matrix out,
                bool add,
                int32_t num_processors,
                const Stream& stream) {
  with_format(part.format, [&](auto format) {
    constexpr QuantFormat kFormat = decltype(format)::value;
    if constexpr (planes_of(kFormat).elements > 1) {
      const auto with = x.rows <= 8    ? run<kFormat, 8>
                        : x.rows <= 16 ? run<kFormat, 16>
                        : x.rows <= 32 ? run<kFormat, 32>
                                       : run<kFormat, 64>;
      with(part, x, out, add, num_processors, stream);
    }
  });
}

}  // namespace headwater::cuda
