// Some rows of activations times block formats on Hopper. As half_rows_cuda.cu, but the weight is
// the instruction's A in registers, decoded to f16 from rows that each warp copies for itself; a
// warp asks the copy engine for the activations.
//
// A lane decodes a run of 32 elements at once, the four lanes of a row 128 elements; so the
// activations lie in that order (arrange_kernel).
#include <algorithm>
#include <type_traits>

#include "kernels/base/launch_cuda.cuh"
#include "kernels/base/tensor_map_cuda.cuh"
#include "kernels/linear/block_rows_cuda.cuh"
#include "kernels/linear/some_rows_cuda.cuh"
#include "kernels/linear/stage_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kMostXRows = 64;
constexpr int kWarpRows = 16;  // of the weight: a warp's part of an instruction's 64
constexpr int kWarps = kMultiplierThreads / 32;
constexpr int kRegisterThreads = 512;  // 128 registers each: the next kernels' blocks need some
constexpr int kStageElements = 256;
constexpr int kStageRuns = kStageElements / kRunElements;
constexpr int kQuadElements = 4 * kRunElements;
constexpr int kBox = 64;  // inputs: 128 bytes
constexpr int kXStages = 2;
constexpr int kMostSlots = 8;
constexpr int kSharedBytes = 224 * 1024;
constexpr int kArrangeThreads = 128;

struct BlockRows {
  const uint8_t* w;
  int64_t w_row_bytes;
  int32_t w_rows, cols;
  int32_t tiles, stages;
  int32_t gated;  // rows from a gate to what it gates; 0: no gate
};

template <QuantFormat kFormat, int kXRows>
struct Shape {
  using S = Stage<kFormat, kStageElements>;
  static constexpr int kPitch = S::kBytes | 16;
  static constexpr int kWarpBytes = kWarpRows * kPitch;
  static constexpr int kXBytes = kXRows * kStageElements * 2;
  static constexpr int kSumBytes = sums_bytes(kXRows);
  static constexpr int kRoom = kSharedBytes - kSwizzleAlign - kXStages * kXBytes - kSumBytes;
  static constexpr int kSlots = std::min(kMostSlots, kRoom / (kWarps * kWarpBytes));
  static constexpr int kBytes =
      kSwizzleAlign + kXStages * kXBytes + kSumBytes + kSlots * kWarps * kWarpBytes;
  static_assert(kSlots >= 2);
};

// A block's place in the weight: tiles `step` apart, of each the same inputs.
struct Place {
  int32_t tile, step, tiles, stage;
  Share share;

  __device__ explicit Place(const BlockRows& a)
      : tile(blockIdx.x), step(gridDim.x), tiles(a.tiles), share(a.stages, blockIdx.y, gridDim.y) {
    stage = share.begin;
  }
  __device__ bool there() const { return tile < tiles; }
  __device__ void advance() {
    if (++stage < share.end) return;
    stage = share.begin;
    tile += step;
  }
};

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
    block_rows_kernel(BlockRows a, Output o, const __grid_constant__ CUtensorMap x_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using S = Shape<kFormat, kXRows>;
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
        turn.advance(kXStages);
      }
    }
    __syncwarp();
    if (split) {
      synchronize_cluster();
      synchronize_cluster();
    }
    return;
  }

  auto* const kept = reinterpret_cast<float*>(x_stages + kXStages * S::kXBytes);
  auto* const slots =
      reinterpret_cast<uint8_t*>(kept) + S::kSumBytes + warp * S::kSlots * S::kWarpBytes;
  const int group = lane / 4, quad = lane % 4;
  const int32_t runs = a.cols / kRunElements;
  Place ahead = place;
  int ahead_slot = 0;
  const auto copy_ahead = [&] {
    if (ahead.there()) {
      const auto copy = [&]<int kRows>(std::integral_constant<int, kRows>, int32_t first, int to) {
        S::S::template copy<kRows>(a.w,
                                   a.w_row_bytes,
                                   a.w_rows,
                                   a.cols / planes_of(kFormat).elements,
                                   first,
                                   ahead.stage,
                                   slots + ahead_slot * S::kWarpBytes + to * S::kPitch,
                                   S::kPitch,
                                   lane);
      };
      const int32_t first = ahead.tile * kTileRows + warp * kWarpRows;
      if (a.gated == 0) {
        copy(std::integral_constant<int, kWarpRows>{}, first, 0);
      } else {
        constexpr std::integral_constant<int, kGateRows> kHalf;
        copy(kHalf, first / 2, 0);
        copy(kHalf, first / 2 + a.gated, kGateRows);
      }
      ahead.advance();
      ahead_slot = ahead_slot + 1 == S::kSlots ? 0 : ahead_slot + 1;
    }
    end_group();
  };
  for (int i = 0; i < S::kSlots - 1; ++i) copy_ahead();
  wait_for_previous();

  float sums[kXRows / 2];
  Turn turn;
  int slot = 0;
  for (; place.there(); place.tile += place.step) {
    for (int32_t stage = place.share.begin; stage < place.share.end; ++stage) {
      wait_for_groups<S::kSlots - 2>();
      __syncwarp();  // this stage is there, and no lane reads the one before it any more
      copy_ahead();
      const uint8_t* rows = slots + slot * S::kWarpBytes;
      const std::byte* x = x_stages + turn.slot * S::kXBytes;
#pragma unroll
      for (int part = 0; part < kStageElements / kQuadElements; ++part) {
        const int run = 4 * part + quad;
        const bool there = stage * kStageRuns + run < runs;
        const auto run_of = [&](int row) {
          return Run<kFormat>::of({rows + row * S::kPitch, S::S::kBlocks}, run);
        };
        const Run<kFormat> low = run_of(group), high = run_of(8 + group);
        if (part == 0) wait_barrier(&full[turn.slot], turn.parity);
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // one is decoded while the other is multiplied
          uint32_t w[4][4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const uint2 a0 = halves_of(low, 4 * half + i), a1 = halves_of(high, 4 * half + i);
            w[i][0] = there ? a0.x : 0;
            w[i][1] = there ? a1.x : 0;
            w[i][2] = there ? a0.y : 0;
            w[i][3] = there ? a1.y : 0;
          }
          fence_wgmma();
#pragma unroll
          for (int i = 0; i < 4; ++i)
            wgmma_registers(sums,
                            w[i],
                            k_major(x + (2 * part + half) * kXRows * 128) + i * 2,
                            stage > place.share.begin || part > 0 || half > 0 || i > 0);
          end_wgmma();
          wait_wgmma<1>();
        }
      }
      wait_wgmma<0>(sums);
      if (lane == 0) arrive(&free[turn.slot]);
      turn.advance(kXStages);
      slot = slot + 1 == S::kSlots ? 0 : slot + 1;
    }
    wait_named(1, kMultiplierThreads);  // nobody reads the sums of the tile before
    keep_sums(sums, kept);
    if (split) {
      synchronize_cluster();
    } else {
      wait_named(1, kMultiplierThreads);
    }
    write_sums(o, kept, place.tile);
  }
  if (split) synchronize_cluster();  // what others read stays
#endif
}

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

template <QuantFormat kFormat, int kXRows>
void run(const CudaWeight::Part& part,
         const FusedLinear& product,
         bool add,
         int32_t num_processors,
         const Stream& stream) {
  const Matrix& x = product.x;
  BlockRows args{};
  args.w = part.data;
  args.w_row_bytes = part.row_bytes;
  args.w_rows = static_cast<int32_t>(part.rows);
  args.cols = static_cast<int32_t>(part.cols);
  args.tiles = ceil_div(part.rows, kTileRows);
  args.stages = ceil_div(part.cols, kStageElements);
  args.gated = product.gate == Gate::kNone ? 0 : args.w_rows / 2;
  const CUtensorMap x_map =
      tensor_map<2>(CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                    x.data,
                    {static_cast<uint64_t>(x.cols), static_cast<uint64_t>(x.rows)},
                    {static_cast<uint64_t>(x.stride) * 2},
                    {kBox, kXRows});
  using S = Shape<kFormat, kXRows>;
  constexpr auto kKernel = block_rows_kernel<kFormat, kXRows>;
  HW_CUDA(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes));
  const int32_t splits = splits_of<kKernel>(args.tiles, args.stages, S::kBytes);
  launch_clusters(
      stream,
      kKernel,
      dim3(static_cast<unsigned>(splits > 1 ? args.tiles : std::min(args.tiles, num_processors)),
           static_cast<unsigned>(splits)),
      dim3(1, static_cast<unsigned>(splits)),
      kSomeRowsThreads,
      S::kBytes,
      args,
      Output(product.out, part.rows, product.gate, add),
      x_map);
}

}  // namespace

bool can_run_block_rows(const CudaWeight::Part& part, int64_t x_rows) {
  return planes_of(part.format).elements > 1 && x_rows >= kFewestBlockRows &&
         x_rows <= kMostXRows && has_body<block_rows_kernel<QuantFormat::kQ8_0, 8>>();
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
                const FusedLinear& product,
                bool add,
                int32_t num_processors,
                const Stream& stream) {
  const int64_t rows = product.x.rows;
  with_format(part.format, [&](auto format) {
    constexpr QuantFormat kFormat = decltype(format)::value;
    if constexpr (planes_of(kFormat).elements > 1) {
      const auto with = rows <= 8    ? run<kFormat, 8>
                        : rows <= 16 ? run<kFormat, 16>
                        : rows <= 32 ? run<kFormat, 32>
                                     : run<kFormat, 64>;
      with(part, product, add, num_processors, stream);
    }
  });
}

}  // namespace headwater::cuda
