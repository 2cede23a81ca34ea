#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/base/elements_cuda.cuh"
#include "kernels/base/launch_cuda.cuh"
#include "kernels/base/status.h"
#include "kernels/linear/block_rows_cuda.cuh"
#include "kernels/linear/few_rows_cuda.cuh"
#include "kernels/linear/half_rows_cuda.cuh"
#include "kernels/linear/linear_cuda.cuh"
#include "kernels/linear/mma_rows_cuda.cuh"
#include "kernels/quant/decode_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDecodeThreads = 128;
// Of scratch for activations and for decoded weights, each; less on a small device.
constexpr int64_t kScratchBytes = int64_t{256} << 20;

// Row blockIdx.x of out = row (ids ? ids[blockIdx.x] : blockIdx.x) of w, times scale. A lane
// decodes a run; what is as narrow as f16 then changes lanes, so that a warp stores 512 bytes at a
// time.
template <QuantFormat kFormat, typename T>
__global__ void __launch_bounds__(kDecodeThreads) decode_rows_kernel(const uint8_t* w,
                                                                     int64_t w_row_bytes,
                                                                     int64_t cols,
                                                                     const int32_t* ids,
                                                                     float scale,
                                                                     T* out,
                                                                     int64_t out_stride) {
  wait_for_previous();
  const int64_t source = ids != nullptr ? ids[blockIdx.x] : static_cast<int64_t>(blockIdx.x);
  const uint8_t* row = w + source * w_row_bytes;
  T* to = out + blockIdx.x * out_stride;
  if constexpr (planes_of(kFormat).elements == 1) {
    constexpr int kBytes = planes_of(kFormat).segments[0].bytes;
    for (int64_t c = threadIdx.x; c < cols; c += kDecodeThreads)
      put(to + c, scalar_at<kFormat>(row + c * kBytes) * scale);
  } else {
    constexpr int kPieces = kRunElements * 2 / 16;  // of a run in f16
    __shared__ uint4 pieces[sizeof(T) == 2 ? kDecodeThreads * kPieces : 1];
    uint4* of_warp = pieces + threadIdx.x / 32 * 32 * kPieces;
    const auto place = [](int run, int piece) { return run * kPieces + (piece ^ (run / 2 % 4)); };
    const int lane = threadIdx.x % 32;
    const int64_t runs = cols / kRunElements;
    const WeightRow<kFormat> blocks{row, cols / planes_of(kFormat).elements};
    for (int64_t first = threadIdx.x - lane; first < runs; first += kDecodeThreads) {
      if (first + lane < runs) {
        const auto run = Run<kFormat>::of(blocks, first + lane);
#pragma unroll
        for (int piece = 0; piece < kPieces; ++piece) {
          const float4 a = floats_of(run, 2 * piece), b = floats_of(run, 2 * piece + 1);
          const float values[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
          if constexpr (sizeof(T) == 2) {
            __half2 pairs[4];
            for (int i = 0; i < 4; ++i)
              pairs[i] = __halves2half2(to_half(values[2 * i] * scale),
                                        to_half(values[2 * i + 1] * scale));
            of_warp[place(lane, piece)] = *reinterpret_cast<const uint4*>(pairs);
          } else {
            for (int i = 0; i < 8; ++i)
              put(to + (first + lane) * kRunElements + 8 * piece + i, values[i] * scale);
          }
        }
      }
      if constexpr (sizeof(T) == 2) {
        __syncwarp();
        auto* pieces_of_row = reinterpret_cast<uint4*>(to) + first * kPieces;
#pragma unroll
        for (int i = lane; i < 32 * kPieces; i += 32)
          if (first + i / kPieces < runs)
            pieces_of_row[i] = of_warp[place(i / kPieces, i % kPieces)];
        __syncwarp();
      }
    }
  }
}

// [rows, cols] f32 -> f16, rows one behind another.
__global__ void narrow_kernel(const float* x, int64_t x_stride, int64_t cols, __half* out) {
  start_next();
  wait_for_previous();
  const int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4;
  if (c >= cols) return;
  const float* from = x + blockIdx.y * x_stride + c;
  __half* to = out + blockIdx.y * cols + c;
  if (c + 4 <= cols && cols % 4 == 0 && x_stride % 4 == 0) {
    put4(to, get4(from));
    return;
  }
  for (int i = 0; i < 4 && c + i < cols; ++i) to[i] = to_half(from[i]);
}

// x as f16: itself, or in the scratch, rows one behind another.
Matrix narrowed(Matrix x, const LinearScratch& scratch, const Stream& stream) {
  if (x.dtype == DType::kF16) return x;
  launch(stream,
         narrow_kernel,
         dim3(static_cast<unsigned>((x.cols / 4 + kThreads) / kThreads),
              static_cast<unsigned>(x.rows)),
         kThreads,
         0,
         x.f32_row(0),
         x.stride,
         x.cols,
         scratch.x.as<__half>());
  return {scratch.x.data(), DType::kF16, x.rows, x.cols, x.cols};
}

template <typename T>
void decode_rows(const CudaWeight::Part& part,
                 int64_t first_row,
                 int64_t num_rows,
                 const int32_t* ids,
                 float scale,
                 T* out,
                 int64_t out_stride,
                 const Stream& stream) {
  if (num_rows == 0) return;
  with_format(part.format, [&](auto format) {
    launch(stream,
           decode_rows_kernel<decltype(format)::value, T>,
           dim3(static_cast<unsigned>(num_rows)),
           kDecodeThreads,
           0,
           part.data + first_row * part.row_bytes,
           part.row_bytes,
           part.cols,
           ids,
           scale,
           out,
           out_stride);
  });
}

int64_t scratch_limit(int64_t device_bytes) {
  return std::clamp<int64_t>(device_bytes / 128, int64_t{16} << 20, kScratchBytes);
}

// A few decoded rows and activations always fit.
void grow(Buffer& buffer, int64_t bytes, const Stream& stream) {
  if (bytes <= buffer.bytes()) return;
  buffer = {};  // cudaFree waits for who still reads it
  buffer = allocate_device(bytes, stream);
}

// Rows of x that the scratch holds at once, of either kind of float.
int64_t rows_at_once(const Buffer& buffer, int64_t cols, int64_t element_bytes) {
  return std::max<int64_t>(1, buffer.bytes() / (cols * element_bytes));
}

void many_rows(const CudaWeight::Part& part,
               Matrix x,
               Matrix out,
               bool add,
               const LinearScratch& scratch,
               const Cublas& cublas,
               const Stream& stream) {
  if (part.format == QuantFormat::kF32) {  // rows are whole multiples of four elements apart
    cublas.multiply(x, reinterpret_cast<const float*>(part.data), part.row_bytes / 4, out, add);
    return;
  }
  const int64_t m_tile = x.dtype == DType::kF16 ? x.rows : rows_at_once(scratch.x, part.cols, 2);
  const bool stored = part.format == QuantFormat::kF16;  // nothing to decode
  const int64_t n_tile =
      stored ? part.rows : std::min(part.rows, rows_at_once(scratch.decoded, part.cols, 2));
  for (int64_t m = 0; m < x.rows; m += m_tile) {
    const int64_t rows = std::min(m_tile, x.rows - m);
    const Matrix x16 = narrowed(x.row_range(m, rows), scratch, stream);
    for (int64_t n = 0; n < part.rows; n += n_tile) {
      const int64_t columns = std::min(n_tile, part.rows - n);
      const auto* w16 = reinterpret_cast<const __half*>(part.data);
      int64_t w_stride = part.row_bytes / 2;
      if (!stored) {
        decode_rows(
            part, n, columns, nullptr, 1.0f, scratch.decoded.as<__half>(), part.cols, stream);
        w16 = scratch.decoded.as<__half>();
        w_stride = part.cols;
      }
      const Matrix to = out.columns(n, columns).row_range(m, rows);
      cublas.multiply_half(x16, w16, w_stride, to, add);
    }
  }
}

}  // namespace

std::unique_ptr<CudaWeight> place_weight(std::span<const WeightView> views,
                                         WeightUpload& upload,
                                         const Stream& stream) {
  auto weight = std::make_unique<CudaWeight>();
  weight->cols = views[0].cols;
  for (size_t i = 0; i < views.size();) {
    const QuantFormat format = views[i].format;
    if (planes_of(format).count == 0)
      throw LoadError("device cuda has no kernels for " + std::string(quant_traits(format).name) +
                      " weights; run with --device cpu");
    CudaWeight::Part part;
    part.format = format;
    part.cols = weight->cols;
    part.first_col = weight->rows;
    part.row_bytes = device_row_bytes(format, part.cols);
    size_t end = i;
    for (; end < views.size() && views[end].format == format; ++end) part.rows += views[end].rows;
    part.bytes = allocate_device(part.rows * part.row_bytes, stream);
    part.data = part.bytes.as<uint8_t>();
    auto* to = part.bytes.as<uint8_t>();
    for (; i < end; ++i) {
      upload.upload(views[i], to, part.row_bytes);
      to += views[i].rows * part.row_bytes;
    }
    weight->rows += part.rows;
    weight->parts.push_back(std::move(part));
  }
  return weight;
}

std::unique_ptr<CudaWeight> load_weight(std::span<const WeightView> views,
                                        bool deterministic,
                                        LinearScratch& scratch,
                                        int64_t device_bytes,
                                        WeightUpload& upload,
                                        const Stream& stream) {
  auto weight = place_weight(views, upload, stream);
  const int64_t limit = scratch_limit(device_bytes);
  for (CudaWeight::Part& part : weight->parts) {
    const bool tensor_cores = !deterministic && can_run_block_rows(part, kFewestBlockRows);
    part.most_few_rows = tensor_cores ? kFewestBlockRows - 1 : most_few_rows(part.format);
    if (part.format != QuantFormat::kF32 && part.format != QuantFormat::kF16)
      grow(scratch.decoded, std::min(limit, part.rows * part.cols * 2) / 16 * 16, stream);
  }
  grow(scratch.x, std::max(limit, few_rows_scratch_bytes(weight->cols)), stream);
  grow(scratch.arranged, arranged_bytes(weight->cols), stream);
  return weight;
}

bool can_fuse(const CudaWeight& weight, const FusedLinear& product) {
  constexpr int kGatedRows = 16;  // half_rows() and block_rows() take eight of either kind together
  const Matrix& x = product.x;
  if (product.gate != Gate::kNone && (weight.parts.size() > 1 || weight.rows % 2 != 0))
    return false;
  return std::ranges::all_of(weight.parts, [&](const CudaWeight::Part& part) {
    if (can_run_few_rows(part, x))
      return product.norm == nullptr || can_normalise(part, x, product.norm);
    const bool gates = can_run_half_rows(part, x.rows) || can_run_block_rows(part, x.rows);
    return product.norm == nullptr && gates && part.rows % kGatedRows == 0;
  });
}

DType linear_dtype(const CudaWeight& weight, int64_t num_rows) {
  const auto reads_half = [&](const CudaWeight::Part& part) {
    return can_run_half_rows(part, num_rows) ||
           (num_rows > kMostFewRows && part.format != QuantFormat::kF32);
  };
  return std::ranges::all_of(weight.parts, reads_half) ? DType::kF16 : DType::kF32;
}

void linear(const CudaWeight& weight,
            const FusedLinear& product,
            bool add,
            const LinearScratch& scratch,
            int32_t num_processors,
            const Cublas& cublas,
            const Stream& stream) {
  const Matrix& x = product.x;
  if (x.rows == 0) return;
  const DType narrowest = linear_dtype(weight, x.rows);
  HW_CHECK(x.dtype == DType::kF32 || x.dtype == narrowest, "rows too few for f16", x.rows);
  HW_CHECK(product.out.dtype == DType::kF32 || product.out.dtype == narrowest,
           "rows too few for f16",
           x.rows);
  bool quantised = false;  // whether the scratch holds x so
  Matrix x16 = x;          // of f16 once a part needed that
  Matrix arranged;         // as block_rows() takes it, once a part needed that
  for (const CudaWeight::Part& part : weight.parts) {
    FusedLinear of_part = product;
    of_part.out = product.out.columns(part.first_col, part.rows);
    const Matrix& columns = of_part.out;
    if (can_run_few_rows(part, x)) {
      few_rows(part, of_part, add, quantised, scratch.x.as<uint8_t>(), num_processors, stream);
      quantised = quantised || (x.rows > 1 && multiplies_integers(part.format));
    } else if (can_run_half_rows(part, x.rows)) {
      of_part.x = x16 = narrowed(x16, scratch, stream);
      half_rows(part, of_part, add, stream);
    } else if (can_run_block_rows(part, x.rows)) {
      if (arranged.data == nullptr) arranged = arrange(x, scratch.arranged.data(), stream);
      of_part.x = arranged;
      block_rows(part, of_part, add, num_processors, stream);
    } else if (can_run_mma_rows(part, x.rows)) {
      x16 = narrowed(x16, scratch, stream);
      mma_rows(part, x16, columns, add, num_processors, stream);
    } else {
      many_rows(part, x, columns, add, scratch, cublas, stream);
      quantised = false;
    }
  }
}

void decode(const CudaWeight::Part& part,
            int64_t first_row,
            int64_t num_rows,
            float* out,
            const Stream& stream) {
  decode_rows(part, first_row, num_rows, nullptr, 1.0f, out, part.cols, stream);
}

void embed(const CudaWeight& table,
           const int32_t* token_ids,
           float scale,
           Matrix out,
           const Stream& stream) {
  decode_rows(table.parts[0], 0, out.rows, token_ids, scale, out.f32_row(0), out.stride, stream);
}

}  // namespace headwater::cuda
