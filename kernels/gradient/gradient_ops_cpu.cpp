#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/host_buffer.h"
#include "kernels/gradient/attention_cpu.h"
#include "kernels/gradient/gradient_ops.h"
#include "kernels/gradient/rows.h"

namespace headwater {
namespace {

using gradient::gemm;
using gradient::rows_of;
using gradient::transposed;

constexpr int64_t kTaskRows = 192;               // of a product with a weight
constexpr int64_t kDecodedElements = 4'000'000;  // of a weight at a time

struct CpuGradientWeight final : Weight {
  std::vector<WeightView> parts;
};

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// 1 / sqrt(mean(x^2) + eps)
float rms_scale(const float* x, int64_t n, float eps) {
  const float mean = gradient::dot_of(x, x, n) / static_cast<float>(n);
  return 1.0f / std::sqrt(mean + eps);
}

class CpuGradientOps final : public GradientOps {
 public:
  explicit CpuGradientOps(ThreadPool& pool)
      : pool_(pool),
        strips_(static_cast<size_t>(pool.num_threads())),
        scratch_(static_cast<size_t>(pool.num_threads())) {}

  Buffer allocate(int64_t bytes) override { return allocate_host(bytes); }
  int64_t free_bytes() const override { return std::numeric_limits<int64_t>::max(); }
  void upload(void* device, const void* host, int64_t bytes) override {
    std::memcpy(device, host, static_cast<size_t>(bytes));
  }
  void download(void* host, const void* device, int64_t bytes) override {
    std::memcpy(host, device, static_cast<size_t>(bytes));
  }
  void clear(Matrix x) override { std::fill_n(x.f32_row(0), x.rows * x.cols, 0.0f); }
  void copy(Matrix from, Matrix to) override {
    std::copy_n(from.f32_row(0), from.rows * from.cols, to.f32_row(0));
  }

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    auto weight = std::make_unique<CpuGradientWeight>();
    weight->parts.assign(parts.begin(), parts.end());
    weight->cols = parts[0].cols;
    for (const WeightView& part : parts) weight->rows += part.rows;
    return weight;
  }

  void linear(const Weight& weight, Matrix x, Matrix y, LinearMode mode) override {
    for_blocks(weight, [&](const float* w, int64_t column, int64_t count) {
      for_tasks(x.rows, [&](int64_t row, int64_t rows, gradient::GemmScratch& scratch) {
        gemm(rows,
             count,
             x.cols,
             rows_of(x.f32_row(row), x.stride),
             transposed(w, x.cols),
             y.f32_row(row) + column,
             y.stride,
             mode == LinearMode::kAdd,
             scratch);
      });
    });
  }
  void linear_backward(const Weight& weight, Matrix dy, Matrix dx) override {
    for_blocks(weight, [&](const float* w, int64_t column, int64_t count) {
      for_tasks(dy.rows, [&](int64_t row, int64_t rows, gradient::GemmScratch& scratch) {
        gemm(rows,
             dx.cols,
             count,
             rows_of(dy.f32_row(row) + column, dy.stride),
             rows_of(w, dx.cols),
             dx.f32_row(row),
             dx.stride,
             column > 0,
             scratch);
      });
    });
  }

  void add_bias(Matrix x, const float* bias) override {
    for_rows(x.rows, [&](int64_t row) {
      for (int64_t c = 0; c < x.cols; ++c) x.f32_row(row)[c] += bias[c];
    });
  }
  void rms_norm(Matrix x, const float* weight, float eps, Matrix y) override {
    for_rows(x.rows, [&](int64_t row) {
      const float* in = x.f32_row(row);
      float* out = y.f32_row(row);
      const float scale = rms_scale(in, x.cols, eps);
      for (int64_t c = 0; c < x.cols; ++c) out[c] = in[c] * scale * weight[c];
    });
  }
  void rms_norm_backward(Matrix x, const float* weight, float eps, Matrix dy, Matrix dx) override {
    for_rows(x.rows, [&](int64_t row) {
      const float *in = x.f32_row(row), *by = dy.f32_row(row);
      float* out = dx.f32_row(row);
      const float scale = rms_scale(in, x.cols, eps);
      double along = 0;
      for (int64_t c = 0; c < x.cols; ++c) along += double{by[c]} * weight[c] * in[c];
      const auto pull = static_cast<float>(along * scale * scale / static_cast<double>(x.cols));
      for (int64_t c = 0; c < x.cols; ++c) out[c] += scale * (by[c] * weight[c] - pull * in[c]);
    });
  }

  void rotate(const RopeSpec& rope, const HeadShape& heads, Turn turn, Matrix qkv) override {
    const int64_t half = rope.rotary_dim / 2;
    const bool adjacent = rope.pairing == RopePairing::kAdjacent;
    const int64_t step = adjacent ? 2 : 1, distance = adjacent ? 1 : half;
    const int64_t num_heads = heads.num_heads + heads.num_kv_heads;
    const float sign = turn == Turn::kBack ? -1 : 1;
    for_rows(qkv.rows, [&](int64_t row) {
      float* x = qkv.f32_row(row);
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(row) * rope.inv_freq[static_cast<size_t>(i)];
        const float cosine = static_cast<float>(std::cos(angle)) * rope.magnitude;
        const float sine = static_cast<float>(std::sin(angle)) * sign * rope.magnitude;
        for (int64_t head = 0; head < num_heads; ++head) {
          float& a = x[head * heads.head_dim + i * step];
          float& b = x[head * heads.head_dim + i * step + distance];
          const float old_a = a;
          a = old_a * cosine - b * sine;
          b = old_a * sine + b * cosine;
        }
      }
    });
  }

  void silu_mul(Matrix gate_up, Matrix out) override {
    for_rows(out.rows, [&](int64_t row) {
      const float *gate = gate_up.f32_row(row), *up = gate + out.cols;
      for (int64_t c = 0; c < out.cols; ++c)
        out.f32_row(row)[c] = gate[c] * sigmoid(gate[c]) * up[c];
    });
  }
  void silu_mul_backward(Matrix gate_up, Matrix d_out, Matrix d_gate_up) override {
    const int64_t n = d_out.cols;
    for_rows(d_out.rows, [&](int64_t row) {
      const float *gate = gate_up.f32_row(row), *d = d_out.f32_row(row);
      float* d_gate = d_gate_up.f32_row(row);
      for (int64_t c = 0; c < n; ++c) {
        const float s = sigmoid(gate[c]);
        d_gate[c] = d[c] * gate[n + c] * s * (1.0f + gate[c] * (1.0f - s));
        d_gate[n + c] = d[c] * gate[c] * s;
      }
    });
  }

  void attention(const GradientAttention& args, Matrix out) override {
    gradient::attention(args, out, pool_, strips_);
  }
  void attention_backward(const GradientAttention& args,
                          Matrix d_out,
                          Matrix d_qkv,
                          const AttentionFindings& findings) override {
    gradient::attention_backward(args, d_out, d_qkv, findings, pool_, strips_);
  }

 private:
  template <typename Body>
  void for_rows(int64_t num_rows, const Body& body) {
    constexpr int64_t kRows = 16;
    pool_.parallel_for((num_rows + kRows - 1) / kRows, [&](int64_t task, int) {
      const int64_t end = std::min(num_rows, (task + 1) * kRows);
      for (int64_t row = task * kRows; row < end; ++row) body(row);
    });
  }
  // Calls body(first row, how many, the thread's scratch).
  template <typename Body>
  void for_tasks(int64_t num_rows, const Body& body) {
    pool_.parallel_for((num_rows + kTaskRows - 1) / kTaskRows, [&](int64_t task, int thread) {
      const int64_t row = task * kTaskRows;
      body(row, std::min(kTaskRows, num_rows - row), scratch_[static_cast<size_t>(thread)]);
    });
  }
  // Decodes the weight block by block: calls body(outputs [column, column + count) as
  // [count, cols], column, count).
  template <typename Body>
  void for_blocks(const Weight& weight, const Body& body) {
    int64_t column = 0;
    for (const WeightView& part : static_cast<const CpuGradientWeight&>(weight).parts) {
      const int64_t block = std::max<int64_t>(1, kDecodedElements / part.cols);
      for (int64_t first = 0; first < part.rows; first += block) {
        const int64_t count = std::min(block, part.rows - first);
        decode(part, first, count);
        body(decoded_.data(), column + first, count);
      }
      column += part.rows;
    }
  }
  void decode(const WeightView& weight, int64_t first, int64_t count) {
    const QuantTraits& traits = quant_traits(weight.format);
    const int64_t bytes = row_bytes(weight.format, weight.cols);
    const auto size = static_cast<size_t>(count * weight.cols);
    if (decoded_.size() < size) decoded_.resize(size);
    for_rows(count, [&](int64_t row) {
      traits.decode(static_cast<const std::byte*>(weight.data) + (first + row) * bytes,
                    weight.cols / traits.block_elements,
                    decoded_.data() + row * weight.cols);
    });
  }

  ThreadPool& pool_;  // not owned
  std::vector<gradient::Strip> strips_;
  std::vector<gradient::GemmScratch> scratch_;
  std::vector<float> decoded_;
};

}  // namespace

std::unique_ptr<GradientOps> make_cpu_gradient_ops(ThreadPool& pool) {
  return std::make_unique<CpuGradientOps>(pool);
}

}  // namespace headwater
