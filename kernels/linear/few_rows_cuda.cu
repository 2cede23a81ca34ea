// Few rows of activations: a warp per pair of weight rows, on the blocks as they lie
// (dots_cuda.cuh). Bound by the weight's bytes; what a lane multiplies next is under way while it
// multiplies.
#include <algorithm>

#include "kernels/base/launch_cuda.cuh"
#include "kernels/linear/dots_cuda.cuh"
#include "kernels/linear/few_rows_cuda.cuh"
#include "kernels/norm/rows_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kWarps = 8;  // of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = 2;  // of the weight: activations are read once for both
// Of activations, at most: with more, tensor cores are faster where they need no copy of the
// weight.
constexpr int most_rows(QuantFormat format) {
  return format == QuantFormat::kF32 || format == QuantFormat::kBF16 ? 8 : 4;
}
constexpr int64_t kSharedBytes = 47 * 1024;  // and what a kernel has by itself, of 48
// One row: its block has a processor for itself and stays for several pairs of rows, so that what
// it does to the activations first is done once.
constexpr int kSingleThreads = kNormThreads;

struct FewRows {
  const uint8_t* w;
  int64_t w_row_bytes;
  int32_t cols;
  int32_t pairs;              // of the weight's rows
  int32_t pair_step, second;  // row r of pair p: p * pair_step + r * second
  int32_t last_row;
  const uint8_t* x;  // f32, or QuantisedRow
  int64_t x_row_bytes;
  int32_t x_rows;
  const float* norm;  // null: none
  float eps;
  float* out;
  int64_t out_stride;
  bool add;
  Gate gate;  // of the first of a pair by the second
};

// A row of activations as products take it, by a block of kNormThreads.
struct Input {
  const float* x;
  const float* norm;
  float scale;

  __device__ Input(const float* row, const float* weight, float eps, int32_t cols)
      : x(row), norm(weight), scale(weight != nullptr ? rms_scale<true>(row, cols, eps) : 1.0f) {}
  __device__ float4 four(int32_t i) const {
    const float4 v = reinterpret_cast<const float4*>(x)[i];
    if (norm == nullptr) return v;
    return normalised(v, scale, reinterpret_cast<const float4*>(norm)[i]);
  }
};

// Four elements of a QuantisedRow; a quarter warp has the 32 of one scale.
__device__ inline void quantise(float4 v, int32_t i, bool there, int32_t cols, uint8_t* to) {
  auto* scales = reinterpret_cast<float*>(to + 2 * int64_t{cols});
  auto* sums = reinterpret_cast<float*>(to + 2 * int64_t{cols} + cols / 8);
  float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
  for (int offset = 4; offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
  const float inverse = largest > 0 ? kLargestInteger / largest : 0.0f;
  const float scale = largest / kLargestInteger;
  const float values[4] = {v.x, v.y, v.z, v.w};
  uint32_t high = 0, low = 0;
  int sum = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int q = __float2int_rn(values[e] * inverse);
    const int h = (q + 128) >> 8;
    high |= static_cast<uint32_t>(h & 0xFF) << (8 * e);
    low |= static_cast<uint32_t>((q - 256 * h) & 0xFF) << (8 * e);
    sum += q;
  }
  for (int offset = 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  if (!there) return;
  reinterpret_cast<uint32_t*>(to)[i] = high;
  reinterpret_cast<uint32_t*>(to + cols)[i] = low;
  if (i % 8 == 0) scales[i / 8] = scale;
  if (i % 4 == 0) sums[i / 4] = scale * static_cast<float>(sum);
}

// Calls body(four, i, whether there is one) for the row's float4s, those of a block's warps side by
// side; loads run ahead.
template <typename Body>
__device__ inline void for_each_four(const Input& in, int32_t cols, const Body& body) {
  constexpr int kAhead = 4;
  const int32_t fours = cols / 4;
  for (int32_t first = 0; first < fours; first += kAhead * kNormThreads) {
    float4 v[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const auto i = static_cast<int32_t>(first + k * kNormThreads + threadIdx.x);
      v[k] = i < fours ? in.four(i) : float4{0, 0, 0, 0};
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (first + k * kNormThreads >= fours) break;
      const auto i = static_cast<int32_t>(first + k * kNormThreads + threadIdx.x);
      body(v[k], i, i < fours);
    }
  }
}

__device__ inline void quantise_row(const Input& in, int32_t cols, uint8_t* to) {
  for_each_four(
      in, cols, [&](float4 v, int32_t i, bool there) { quantise(v, i, there, cols, to); });
}

__global__ void __launch_bounds__(kNormThreads) quantise_kernel(
    const float* x, int64_t x_stride, const float* norm, float eps, int32_t cols, uint8_t* to) {
  start_next();
  if (norm != nullptr) prefetch_weight(norm, cols);
  wait_for_previous();
  quantise_row(Input(x + blockIdx.x * x_stride, norm, eps, cols),
               cols,
               to + blockIdx.x * QuantisedRow::bytes(cols));
}

// Lane l of a warp sums the chunks l, l + 32, ... in order, then the lanes form a tree: the bits of
// an output do not depend on how many rows x has. kOwn: the block makes its own copy of the one
// row, normalised or quantised.
template <QuantFormat kFormat, int kRows, bool kOwn>
__global__ void __launch_bounds__(kRows == 1 ? kSingleThreads : kThreads, 1)
    few_rows_kernel(FewRows a) {
  using D = Dot<kFormat>;
  constexpr int kAhead = sizeof(D) > 24 ? 2 : 4;  // chunks of a row in flight
  extern __shared__ uint4 own[];
  const int lane = threadIdx.x % 32;
  const int32_t rows = min(kRows, a.x_rows);
  const int32_t chunks = a.cols / D::kElements;
  const auto num_warps = static_cast<int32_t>(gridDim.x * blockDim.x / 32);
  D now[kAhead][kWarpRows];
  const auto load = [&](D(&to)[kAhead][kWarpRows], int32_t pair, int32_t first) {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {  // a row too many is computed, not written
      const int32_t n = min(pair * a.pair_step + r * a.second, a.last_row);
      const WeightRow<kFormat> row{a.w + n * a.w_row_bytes, a.cols / planes_of(kFormat).elements};
#pragma unroll
      for (int i = 0; i < kAhead; ++i) to[i][r].load(row, min(first + 32 * i, chunks - 1));
    }
  };
  start_next();
  auto pair = static_cast<int32_t>(threadIdx.x / 32 * gridDim.x + blockIdx.x);
  if (pair < a.pairs) load(now, pair, lane);
  if constexpr (kOwn) {
    if (a.norm != nullptr) prefetch_weight(a.norm, a.cols);
  }
  wait_for_previous();
  if constexpr (kOwn) {
    const Input in(reinterpret_cast<const float*>(a.x), a.norm, a.eps, a.cols);
    if constexpr (D::kInteger) {
      quantise_row(in, a.cols, reinterpret_cast<uint8_t*>(own));
    } else {
      for_each_four(in, a.cols, [&](float4 v, int32_t i, bool there) {
        if (there) reinterpret_cast<float4*>(own)[i] = v;
      });
    }
    __syncthreads();
  }
  const uint8_t* x_rows = kOwn ? reinterpret_cast<const uint8_t*>(own) : a.x;
  while (pair < a.pairs) {
    const int32_t current = pair;
    pair += num_warps;
    float sums[kWarpRows][kRows] = {};
    for (int32_t first = lane; first - lane < chunks; first += 32 * kAhead) {
      D next[kAhead][kWarpRows];
      if (first - lane + 32 * kAhead < chunks) {
        load(next, current, first + 32 * kAhead);
      } else if (pair < a.pairs) {
        load(next, pair, lane);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int32_t chunk = first + 32 * i;
        if (chunk < chunks) {
#pragma unroll
          for (int m = 0; m < kRows; ++m) {
            if (m >= rows) break;
            const uint8_t* from = x_rows + m * a.x_row_bytes;
            if constexpr (D::kInteger) {
              const QuantisedRow x{from, a.cols};
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
      float of[kWarpRows];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        of[r] = sums[r][m];
        for (int offset = 16; offset > 0; offset /= 2) of[r] += __shfl_xor_sync(~0u, of[r], offset);
      }
      if (lane != 0) continue;
      float* out = a.out + m * a.out_stride;
      if (a.gate != Gate::kNone) {
        out[current] = gated(a.gate, of[0], of[1]);
        continue;
      }
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        const int32_t n = current * kWarpRows + r;
        if (n <= a.last_row) out[n] = a.add ? out[n] + of[r] : of[r];
      }
    }
  }
}

template <QuantFormat kFormat>
constexpr bool integer() {
  return Dot<kFormat>::kInteger;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

int most_few_rows(QuantFormat format) { return most_rows(format); }

bool can_run_few_rows(const CudaWeight::Part& part, Matrix x) {
  return x.rows <= part.most_few_rows && part.cols % 8 == 0 && x.stride % 4 == 0 && aligned(x.data);
}

bool can_normalise(const CudaWeight::Part& part, Matrix x, const float* norm) {
  return aligned(norm) && (multiplies_integers(part.format) ||
                           (x.rows == 1 && part.cols * int64_t{sizeof(float)} <= kSharedBytes));
}

bool multiplies_integers(QuantFormat format) {
  bool result = false;
  with_format(format, [&](auto constant) { result = integer<decltype(constant)::value>(); });
  return result;
}

int64_t few_rows_scratch_bytes(int64_t cols) { return kMostFewRows * QuantisedRow::bytes(cols); }

void few_rows(const CudaWeight::Part& part,
              const FusedLinear& product,
              bool add,
              bool quantised,
              uint8_t* scratch,
              int32_t num_processors,
              const Stream& stream) {
  const Matrix& x = product.x;
  const bool gates = product.gate != Gate::kNone;
  const auto rows = static_cast<int32_t>(part.rows);
  const int32_t pairs = (rows + kWarpRows - 1) / kWarpRows;
  FewRows args{part.data,
               part.row_bytes,
               static_cast<int32_t>(part.cols),
               pairs,
               gates ? 1 : kWarpRows,
               gates ? pairs : 1,
               rows - 1,
               static_cast<const uint8_t*>(x.data),
               x.stride * int64_t{sizeof(float)},
               static_cast<int32_t>(x.rows),
               product.norm,
               product.eps,
               product.out.f32_row(0),
               product.out.stride,
               add,
               product.gate};
  with_format(part.format, [&](auto format) {
    constexpr QuantFormat kFormat = decltype(format)::value;
    constexpr bool kInteger = integer<kFormat>();
    const int64_t quantised_bytes = QuantisedRow::bytes(part.cols);
    const int64_t own_bytes = kInteger ? quantised_bytes : part.cols * int64_t{sizeof(float)};
    const auto launch_single = [&](auto kernel, int64_t shared_bytes) {
      launch(stream,
             kernel,
             dim3(static_cast<unsigned>(std::min(pairs, num_processors))),
             kSingleThreads,
             static_cast<size_t>(shared_bytes),
             args);
    };
    if (x.rows == 1 && (kInteger || product.norm != nullptr) && own_bytes <= kSharedBytes)
      return launch_single(few_rows_kernel<kFormat, 1, true>, own_bytes);
    if constexpr (kInteger) {
      if (!quantised)
        launch(stream,
               quantise_kernel,
               dim3(static_cast<unsigned>(x.rows)),
               kNormThreads,
               0,
               x.f32_row(0),
               x.stride,
               product.norm,
               product.eps,
               args.cols,
               scratch);
      args.x = scratch;
      args.x_row_bytes = quantised_bytes;
    } else {
      if (x.rows == 1) return launch_single(few_rows_kernel<kFormat, 1, false>, 0);
    }
    launch(stream,
           few_rows_kernel<kFormat, most_rows(kFormat), false>,
           dim3(static_cast<unsigned>((pairs + kWarps - 1) / kWarps)),
           kThreads,
           0,
           args);
  });
}

}  // namespace headwater::cuda
