// GradientOps on one GPU, one stream. Host code only: the kernels are in the *_cuda.cu files.
#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/cuda.cuh"
#include "kernels/base/status.h"
#include "kernels/gradient/attention_cuda.cuh"
#include "kernels/gradient/gradient_ops.h"
#include "kernels/gradient/rows_cuda.cuh"
#include "kernels/linear/linear_cuda.cuh"
#include "kernels/norm/norm_cuda.cuh"

namespace headwater {
namespace {

constexpr int64_t kFloatBytes = sizeof(float);
constexpr int64_t kScratchBytes = int64_t{256} << 20;  // of one factor of a product

// Products with weights are TF32 on the tensor cores with both factors split into two TF32 numbers:
// their 22 bits keep the product as good as fp32's, at twice its speed or more.
struct Halves {
  const float* high = nullptr;
  const float* low = nullptr;  // null: all zero
};

// Of `count` rows, as many as the scratch takes.
int64_t rows_at_once(int64_t cols, int64_t count) {
  return std::clamp<int64_t>(kScratchBytes / kFloatBytes / cols, 1, std::max<int64_t>(1, count));
}

bool fits_tf32(QuantFormat format) {
  return format == QuantFormat::kF16 || format == QuantFormat::kBF16;
}

class CudaGradientOps final : public GradientOps {
 public:
  ~CudaGradientOps() override { (void)cudaStreamSynchronize(stream_.get()); }

  Buffer allocate(int64_t bytes) override { return cuda::allocate_device(bytes, stream_); }
  int64_t free_bytes() const override {
    size_t free = 0, total = 0;
    HW_CUDA(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(free);
  }
  void upload(void* device, const void* host, int64_t bytes) override {
    HW_CUDA(cudaMemcpyAsync(
        device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_.get()));
    HW_CUDA(cudaStreamSynchronize(stream_.get()));
  }
  void download(void* host, const void* device, int64_t bytes) override {
    HW_CUDA(cudaMemcpyAsync(
        host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_.get()));
    HW_CUDA(cudaStreamSynchronize(stream_.get()));
  }
  void clear(Matrix x) override { HW_CUDA(cudaMemsetAsync(x.data, 0, bytes_of(x), stream_.get())); }
  void copy(Matrix from, Matrix to) override {
    HW_CUDA(cudaMemcpyAsync(
        to.data, from.data, bytes_of(from), cudaMemcpyDeviceToDevice, stream_.get()));
  }

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    return cuda::place_weight(parts, upload_, stream_);
  }
  void linear(const Weight& weight, Matrix x, Matrix y, LinearMode mode) override {
    for_blocks(weight, [&](const Halves& w, int64_t column, int64_t count) {
      product(x,
              w,
              x.cols,
              cuda::Factor::Layout::kTransposed,
              y.columns(column, count),
              mode == LinearMode::kAdd);
    });
  }
  void linear_backward(const Weight& weight, Matrix dy, Matrix dx) override {
    for_blocks(weight, [&](const Halves& w, int64_t column, int64_t count) {
      product(dy.columns(column, count), w, dx.cols, cuda::Factor::Layout::kRows, dx, column > 0);
    });
  }

  void add_bias(Matrix x, const float* bias) override { cuda::add_bias(x, bias, stream_); }
  void rms_norm(Matrix x, const float* weight, float eps, Matrix y) override {
    cuda::rms_norm(x, weight, eps, y, stream_);
  }
  void rms_norm_backward(Matrix x, const float* weight, float eps, Matrix dy, Matrix dx) override {
    cuda::rms_norm_backward(x, weight, eps, dy, dx, stream_);
  }
  void rotate(const RopeSpec& rope, const HeadShape& heads, Turn turn, Matrix qkv) override {
    cuda::rotate(rope, heads, turn, qkv, stream_);
  }
  void silu_mul(Matrix gate_up, Matrix out) override { cuda::silu_mul(gate_up, out, stream_); }
  void silu_mul_backward(Matrix gate_up, Matrix d_out, Matrix d_gate_up) override {
    cuda::silu_mul_backward(gate_up, d_out, d_gate_up, stream_);
  }
  void attention(const GradientAttention& args, Matrix out) override {
    cuda::gradient_attention(args, out, attention_, cublas_, stream_);
  }
  void attention_backward(const GradientAttention& args,
                          Matrix d_out,
                          Matrix d_qkv,
                          const AttentionFindings& findings) override {
    cuda::gradient_attention_backward(args, d_out, d_qkv, findings, attention_, cublas_, stream_);
  }

 private:
  static size_t bytes_of(Matrix x) {
    HW_CHECK(x.stride == x.cols, "rows one behind another", x.stride);
    return static_cast<size_t>(x.rows * x.cols * kFloatBytes);
  }
  float* room(Buffer& buffer, int64_t elements) {
    if (buffer.bytes() < elements * kFloatBytes) {
      buffer = {};  // cudaFree waits for who still reads it
      buffer = allocate(elements * kFloatBytes);
    }
    return buffer.as<float>();
  }

  // Decodes the weight block by block: calls body(outputs [column, column + count) as
  // [count, cols], column, count).
  template <typename Body>
  void for_blocks(const Weight& weight, const Body& body) {
    for (const auto& part : static_cast<const cuda::CudaWeight&>(weight).parts) {
      const int64_t block = rows_at_once(part.cols, part.rows);
      for (int64_t first = 0; first < part.rows; first += block) {
        const int64_t count = std::min(block, part.rows - first);
        float* values = room(w_high_, count * part.cols);
        cuda::decode(part, first, count, values, stream_);
        Halves w{values, nullptr};
        if (!fits_tf32(part.format)) {
          float* low = room(w_low_, count * part.cols);
          const Matrix all{values, DType::kF32, count, part.cols, part.cols};
          cuda::split_tf32(all, values, low, stream_);
          w.low = low;
        }
        body(w, part.first_col + first, count);
      }
    }
  }

  // out (+)= a * w; w_stride, layout: of both halves of w
  void product(Matrix a,
               const Halves& w,
               int64_t w_stride,
               cuda::Factor::Layout layout,
               Matrix out,
               bool add) {
    const int64_t block = rows_at_once(a.cols, a.rows);
    for (int64_t row = 0; row < a.rows; row += block) {
      const int64_t rows = std::min(block, a.rows - row);
      const Halves x{room(a_high_, rows * a.cols), room(a_low_, rows * a.cols)};
      cuda::split_tf32(a.row_range(row, rows), a_high_.as<float>(), a_low_.as<float>(), stream_);
      const auto multiply = [&](const float* of_x, const float* of_w, bool add_to) {
        cublas_.multiply_batch({of_x, a.cols, cuda::Factor::Layout::kRows, 0},
                               {of_w, w_stride, layout, 0},
                               a.cols,
                               out.row_range(row, rows),
                               0,
                               1,
                               add_to,
                               cuda::Arithmetic::kTf32);
      };
      multiply(x.low, w.high, add);
      if (w.low != nullptr) multiply(x.high, w.low, true);
      multiply(x.high, w.high, true);
    }
  }

  cuda::Stream stream_;
  cuda::Cublas cublas_{stream_};
  cuda::WeightUpload upload_{stream_};
  Buffer w_high_, w_low_, a_high_, a_low_;
  cuda::GradientScratch attention_;
};

}  // namespace

std::unique_ptr<GradientOps> make_cuda_gradient_ops() {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty())
    throw ConfigError("device cuda: " + obstacle);
  return std::make_unique<CudaGradientOps>();
}

}  // namespace headwater
