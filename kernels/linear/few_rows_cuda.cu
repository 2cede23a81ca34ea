// Few rows of activations: a warp per pair of weight rows, on the blocks as they lie
// (dots_cuda.cuh). Bound by the weight's bytes; what a lane multiplies next is under way while it
// multiplies.
#include <algorithm>

#include "kernels/base/launch_cuda.cuh"
#include "kernels/linear/dots_cuda.cuh"
#include "kernels/linear/few_rows_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kWarps = 8;  // of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = 2;  // of the weight: activations are read once for both
constexpr int kPassRows = 8;  // of activations, at most
constexpr int kBlocksPerProcessor = 2;

struct FewRows {
  const uint8_t* w;
  int64_t w_row_bytes;
  int32_t w_rows, cols;
  const uint8_t* x;  // f32, or QuantisedRow
  int64_t x_row_bytes;
  int32_t x_rows;
  float* out;
  int64_t out_stride;
  bool add;
};

// A quarter warp quantises 32 elements, four a lane.
__device__ void quantise(const float* x, int32_t cols, uint8_t* to, int thread, int num_threads) {
  auto* scales = reinterpret_cast<float*>(to + 2 * int64_t{cols});
  auto* sums = reinterpret_cast<float*>(to + 2 * int64_t{cols} + cols / 8);
  for (int32_t begin = 0; begin < cols / 4; begin += num_threads) {
    const int32_t i = begin + thread;
    const bool there = i < cols / 4;
    const float4 v = there ? reinterpret_cast<const float4*>(x)[i] : float4{0, 0, 0, 0};
    float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
    for (int offset = 4; offset > 0; offset /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
    const float inverse = largest > 0 ? kLargestInteger / largest : 0.0f;
    const float scale = largest / kLargestInteger;
    const float values[4] = {v.x, v.y, v.z, v.w};
    uint32_t high = 0, low = 0;
    int sum = 0;
    for (int e = 0; e < 4; ++e) {
      const int q = __float2int_rn(values[e] * inverse);
      const int h = (q + 128) >> 8;
      high |= static_cast<uint32_t>(h & 0xFF) << (8 * e);
      low |= static_cast<uint32_t>((q - 256 * h) & 0xFF) << (8 * e);
      sum += q;
    }
    for (int offset = 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (!there) continue;
    reinterpret_cast<uint32_t*>(to)[i] = high;
    reinterpret_cast<uint32_t*>(to + cols)[i] = low;
    if (i % 8 == 0) scales[i / 8] = scale;
    if (i % 4 == 0) sums[i / 4] = scale * static_cast<float>(sum);
  }
}

__global__ void __launch_bounds__(kThreads)
    quantise_kernel(const float* x, int64_t x_stride, int32_t cols, uint8_t* to) {
  wait_for_previous();
  quantise(x + blockIdx.x * x_stride,
           cols,
           to + blockIdx.x * QuantisedRow::bytes(cols),
           threadIdx.x,
           kThreads);
}

// Lane l of a warp sums the chunks l, l + 32, ... in order, then the lanes form a tree: the bits of
// an output do not depend on how many rows x has. kOwn: one row, which the block quantises itself.
template <QuantFormat kFormat, int kRows, bool kOwn>
__global__ void __launch_bounds__(kThreads, kRows == 1 ? 2 : 1) few_rows_kernel(FewRows a) {
  using D = Dot<kFormat>;
  constexpr int kAhead = sizeof(D) > 24 ? 2 : 4;  // chunks of a row in flight
  extern __shared__ uint4 own[];
  const int lane = threadIdx.x % 32;
  const int32_t rows = min(kRows, a.x_rows);
  const int32_t chunks = a.cols / D::kElements;
  const int32_t pairs = (a.w_rows + kWarpRows - 1) / kWarpRows;
  const auto num_warps = static_cast<int32_t>(gridDim.x * kWarps);
  D now[kAhead][kWarpRows];
  const auto load = [&](D(&to)[kAhead][kWarpRows], int32_t pair, int32_t first) {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {  // a row too many is computed, not written
      const WeightRow<kFormat> row{a.w + min(pair * kWarpRows + r, a.w_rows - 1) * a.w_row_bytes,
                                   a.cols / planes_of(kFormat).elements};
#pragma unroll
      for (int i = 0; i < kAhead; ++i) to[i][r].load(row, min(first + 32 * i, chunks - 1));
    }
  };
  start_next();
  int32_t pair = blockIdx.x * kWarps + threadIdx.x / 32;
  if (pair < pairs) load(now, pair, lane);
  wait_for_previous();
  if constexpr (kOwn) {
    quantise(reinterpret_cast<const float*>(a.x),
             a.cols,
             reinterpret_cast<uint8_t*>(own),
             threadIdx.x,
             kThreads);
    __syncthreads();
  }
  while (pair < pairs) {
    const int32_t n0 = pair * kWarpRows;
    pair += num_warps;
    float sums[kWarpRows][kRows] = {};
    for (int32_t first = lane; first - lane < chunks; first += 32 * kAhead) {
      D next[kAhead][kWarpRows];
      if (first - lane + 32 * kAhead < chunks) {
        load(next, n0 / kWarpRows, first + 32 * kAhead);
      } else if (pair < pairs) {
        load(next, pair, lane);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int32_t chunk = first + 32 * i;
        if (chunk < chunks) {
#pragma unroll
          for (int m = 0; m < kRows; ++m) {
            if (m >= rows) break;
            const uint8_t* from = a.x + m * a.x_row_bytes;
            if constexpr (D::kInteger) {
              const QuantisedRow x{kOwn ? reinterpret_cast<const uint8_t*>(own) : from, a.cols};
#pragma unroll
              for (int r = 0; r < kWarpRows; ++r) sums[r][m] = now[i][r].dot(x, chunk, sums[r][m]);
            } else {
              const auto* x = reinterpret_cast<const float*>(from);
#pragma unroll
              for (int r = 0; r < kWarpRows; ++r) sums[r][m] = now[i][r].dot(x, chunk, sums[r][m]);
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
#pragma unroll
        for (int r = 0; r < kWarpRows; ++r) now[i][r] = next[i][r];
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      if (m >= rows) break;
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        float sum = sums[r][m];
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
        if (lane != 0 || n0 + r >= a.w_rows) continue;
        float& y = a.out[m * a.out_stride + n0 + r];
        y = a.add ? y + sum : sum;
      }
    }
  }
}

template <QuantFormat kFormat>
constexpr bool integer() {
  return Dot<kFormat>::kInteger;
}

}  // namespace

bool can_run_few_rows(const CudaWeight::Part& part, Matrix x) {
  // Tensor cores are faster on 16-bit weights from there on.
  const int64_t most = part.format == QuantFormat::kF16 ? kPassRows / 2 : kPassRows;
  return x.rows <= most && part.cols % 8 == 0 && x.stride % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

bool multiplies_integers(QuantFormat format) {
  bool result = false;
  with_format(format, [&](auto constant) { result = integer<decltype(constant)::value>(); });
  return result;
}

int64_t few_rows_scratch_bytes(int64_t cols) { return kPassRows * QuantisedRow::bytes(cols); }

void few_rows(const CudaWeight::Part& part,
              Matrix x,
              Matrix out,
              bool add,
              bool quantised,
              uint8_t* scratch,
              int32_t num_processors,
              const Stream& stream) {
  FewRows args{part.data,
               part.row_bytes,
               static_cast<int32_t>(part.rows),
               static_cast<int32_t>(part.cols),
               static_cast<const uint8_t*>(x.data),
               x.stride * int64_t{sizeof(float)},
               static_cast<int32_t>(x.rows),
               out.f32_row(0),
               out.stride,
               add};
  constexpr int kBlockRows = kWarps * kWarpRows;
  const auto blocks = static_cast<unsigned>((part.rows + kBlockRows - 1) / kBlockRows);
  // Blocks that quantise for themselves stay for several pairs of rows.
  const auto stays = std::min(blocks, static_cast<unsigned>(kBlocksPerProcessor * num_processors));
  with_format(part.format, [&](auto format) {
    constexpr QuantFormat kFormat = decltype(format)::value;
    const int64_t row = QuantisedRow::bytes(part.cols);
    if (x.rows == 1 && (!integer<kFormat>() || row <= 48 * 1024)) {
      launch(stream,
             few_rows_kernel<kFormat, 1, integer<kFormat>()>,
             dim3(integer<kFormat>() ? stays : blocks),
             kThreads,
             integer<kFormat>() ? static_cast<size_t>(row) : 0,
             args);
      return;
    }
    if constexpr (integer<kFormat>()) {
      if (!quantised)
        launch(stream,
               quantise_kernel,
               dim3(static_cast<unsigned>(x.rows)),
               kThreads,
               0,
               x.f32_row(0),
               x.stride,
               args.cols,
               scratch);
      args.x = scratch;
      args.x_row_bytes = row;
    }
    launch(stream, few_rows_kernel<kFormat, kPassRows, false>, dim3(blocks), kThreads, 0, args);
  });
}

}  // namespace headwater::cuda
