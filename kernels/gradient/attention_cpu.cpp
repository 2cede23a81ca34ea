#include "kernels/gradient/attention_cpu.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/gradient/rows.h"

namespace headwater::gradient {
namespace {

constexpr int64_t kTile = kEffectBlockTokens;
constexpr float kEffectEps = 1e-5f;  // where one entry holds the whole row

// What a streaming head sees of the n positions up to its own: [0, sinks) and [recent, n).
struct Window {
  int64_t sinks, recent, n;

  Window(const GradientAttention& args, int64_t num_positions) : n(num_positions) {
    recent = std::max<int64_t>(0, n - args.recent);
    sinks = std::min<int64_t>(args.sinks, recent);
  }
  int64_t size() const { return sinks + n - recent; }
  void gather(const float* row, float* out) const {
    std::copy_n(row, sinks, out);
    std::copy(row + recent, row + n, out + sinks);
  }
  void add_to(const float* part, float factor, float* row) const {
    add_scaled(factor, part, sinks, row);
    add_scaled(factor, part + sinks, n - recent, row + recent);
  }
};

void softmax(float* x, float scale, int64_t n) {
  const float sum = exp_of(x, max_of(x, n), scale, n, x);
  scale_by(1.0f / sum, n, x);
}

// Logits of one row into attention weights: those of a full head, mixed with a streaming head's.
void mixed_weights(float* row, int64_t n, const GradientAttention& args, float alpha, float* part) {
  if (args.alpha == nullptr || alpha == 1.0f) return softmax(row, args.scale, n);
  const Window window(args, n);
  window.gather(row, part);
  softmax(part, args.scale, window.size());
  if (alpha == 0.0f) {
    std::fill_n(row, n, 0.0f);
  } else {
    softmax(row, args.scale, n);
    scale_by(alpha, n, row);
  }
  window.add_to(part, 1.0f - alpha, row);
}

// Both at once: logits into weights, their gradients into those of the logits. Returns the gradient
// by alpha.
double mixed_gradients(float* row,
                       float* d_row,
                       int64_t n,
                       const GradientAttention& args,
                       float alpha,
                       float* part,
                       float* d_part) {
  const float scale = args.scale;
  const Window window(args, n);
  window.gather(row, part);
  window.gather(d_row, d_part);
  softmax(part, scale, window.size());
  const float part_mean = dot_of(part, d_part, window.size());
  softmax_gradient((1.0f - alpha) * scale, part, d_part, part_mean, window.size(), d_part);

  softmax(row, scale, n);
  const float mean = dot_of(row, d_row, n);
  softmax_gradient(alpha * scale, row, d_row, mean, n, d_row);
  window.add_to(d_part, 1.0f, d_row);
  scale_by(alpha, n, row);
  window.add_to(part, 1.0f - alpha, row);
  return double{mean} - part_mean;
}

// A layer as one of its query heads sees it.
struct Head {
  const GradientAttention& args;
  int64_t head, kv_head, group;
  int64_t rows, dim, stride;  // stride: of a row of q, k and v
  int64_t q_cols, kv_cols;
  const float *q, *k, *v;
  float alpha;

  Head(const GradientAttention& a, int64_t idx)
      : args(a),
        head(idx),
        group(a.heads.num_heads / a.heads.num_kv_heads),
        rows(a.qkv.rows),
        dim(a.heads.head_dim),
        stride(a.qkv.stride),
        q_cols(a.heads.num_heads * dim),
        kv_cols(a.heads.num_kv_heads * dim) {
    kv_head = head / group;
    q = a.qkv.f32_row(0) + head * dim;
    k = a.qkv.f32_row(0) + q_cols + kv_head * dim;
    v = k + kv_cols;
    alpha = a.alpha != nullptr ? a.alpha[kv_head] : 1.0f;
  }
};

// One query head's share of the gradients by K and V, and by its gate.
struct HeadGradients {
  std::vector<float> d_k, d_v;  // [rows, head_dim]
  double d_alpha = 0;
};

void reserve(std::vector<Strip>& strips, int64_t rows) {
  for (Strip& strip : strips) {
    strip.scores.resize(static_cast<size_t>(kTile * rows));
    strip.d_scores.resize(static_cast<size_t>(kTile * rows));
    strip.window.resize(static_cast<size_t>(rows));
    strip.d_window.resize(static_cast<size_t>(rows));
  }
}

// d_q: this head's columns
void backward_head(const Head& x,
                   Matrix d_out,
                   float* d_q,
                   HeadGradients& gradients,
                   const AttentionFindings& findings,
                   Strip& strip) {
  const int64_t stride = x.stride, dim = x.dim;
  const float scale = x.args.scale;
  float* scores = strip.scores.data();
  float* d_scores = strip.d_scores.data();
  for (int64_t row = x.args.first_row / kTile * kTile; row < x.rows; row += kTile) {
    const int64_t end = std::min(row + kTile, x.rows);
    const float* d_head = d_out.f32_row(row) + x.head * dim;
    gemm(end - row,
         end,
         dim,
         rows_of(x.q + row * stride, stride),
         transposed(x.k, stride),
         scores,
         end,
         false,
         strip.gemm);
    gemm(end - row,
         end,
         dim,
         rows_of(d_head, d_out.stride),
         transposed(x.v, stride),
         d_scores,
         end,
         false,
         strip.gemm);
    for (int64_t r = row; r < end; ++r) {
      float* weights = scores + (r - row) * end;
      float* d_weights = d_scores + (r - row) * end;
      const int64_t n = r + 1;
      if (x.args.alpha != nullptr) {
        gradients.d_alpha += mixed_gradients(
            weights, d_weights, n, x.args, x.alpha, strip.window.data(), strip.d_window.data());
      } else {
        softmax(weights, scale, n);
        const float mean = dot_of(weights, d_weights, n);
        if (findings.effects != nullptr && r >= findings.first_effect_row) {
          double* effects =
              findings.effects + (x.head * findings.num_blocks + row / kTile) * findings.num_blocks;
          for (int64_t c = 0; c < n; c += kTile)
            effects[c / kTile] += masking_effect(
                weights + c, d_weights + c, mean, kEffectEps, std::min(kTile, n - c));
        }
        softmax_gradient(scale, weights, d_weights, mean, n, d_weights);
      }
      std::fill(weights + n, weights + end, 0.0f);
      std::fill(d_weights + n, d_weights + end, 0.0f);
    }
    gemm(end - row,
         dim,
         end,
         rows_of(d_scores, end),
         rows_of(x.k, stride),
         d_q + row * stride,
         stride,
         false,
         strip.gemm);
    gemm(end,
         dim,
         end - row,
         transposed(d_scores, end),
         rows_of(x.q + row * stride, stride),
         gradients.d_k.data(),
         dim,
         true,
         strip.gemm);
    gemm(end,
         dim,
         end - row,
         transposed(scores, end),
         rows_of(d_head, d_out.stride),
         gradients.d_v.data(),
         dim,
         true,
         strip.gemm);
  }
}

}  // namespace

void attention(const GradientAttention& args,
               Matrix out,
               ThreadPool& pool,
               std::vector<Strip>& strips) {
  reserve(strips, args.qkv.rows);
  const int64_t num_heads = args.heads.num_heads, num_rows = args.qkv.rows;
  const int64_t first_tile = args.first_row / kTile;
  const int64_t num_tiles = (num_rows + kTile - 1) / kTile - first_tile;
  pool.parallel_for(num_tiles * num_heads, [&](int64_t task, int thread) {
    Strip& strip = strips[static_cast<size_t>(thread)];
    const Head x(args, task % num_heads);
    const int64_t row = (first_tile + num_tiles - 1 - task / num_heads) * kTile;
    const int64_t end = std::min(row + kTile, num_rows);
    float* scores = strip.scores.data();
    gemm(end - row,
         end,
         x.dim,
         rows_of(x.q + row * x.stride, x.stride),
         transposed(x.k, x.stride),
         scores,
         end,
         false,
         strip.gemm);
    for (int64_t r = row; r < end; ++r) {
      float* weights = scores + (r - row) * end;
      mixed_weights(weights, r + 1, args, x.alpha, strip.window.data());
      std::fill(weights + r + 1, weights + end, 0.0f);
    }
    gemm(end - row,
         x.dim,
         end,
         rows_of(scores, end),
         rows_of(x.v, x.stride),
         out.f32_row(row) + x.head * x.dim,
         out.stride,
         false,
         strip.gemm);
  });
}

void attention_backward(const GradientAttention& args,
                        Matrix d_out,
                        Matrix d_qkv,
                        const AttentionFindings& findings,
                        ThreadPool& pool,
                        std::vector<Strip>& strips) {
  HW_CHECK(d_qkv.stride == args.qkv.stride, "gradients of one shape with q, k and v");
  reserve(strips, args.qkv.rows);
  const int64_t num_heads = args.heads.num_heads, rows = args.qkv.rows;
  const int64_t dim = args.heads.head_dim;
  std::fill_n(d_qkv.f32_row(0), rows * d_qkv.stride, 0.0f);
  std::vector<HeadGradients> shares(static_cast<size_t>(num_heads));
  pool.parallel_for(num_heads, [&](int64_t head, int thread) {
    HeadGradients& share = shares[static_cast<size_t>(head)];
    share.d_k.assign(static_cast<size_t>(rows * dim), 0.0f);
    share.d_v.assign(static_cast<size_t>(rows * dim), 0.0f);
    backward_head(Head(args, head),
                  d_out,
                  d_qkv.f32_row(0) + head * dim,
                  share,
                  findings,
                  strips[static_cast<size_t>(thread)]);
  });
  const int64_t group = num_heads / args.heads.num_kv_heads;
  constexpr int64_t kRows = 16;  // of a task
  pool.parallel_for((rows + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t row = task * kRows; row < std::min(rows, (task + 1) * kRows); ++row)
      for (int64_t head = 0; head < num_heads; ++head) {
        const HeadGradients& share = shares[static_cast<size_t>(head)];
        float* d_k = d_qkv.f32_row(row) + (num_heads + head / group) * dim;
        float* d_v = d_k + args.heads.num_kv_heads * dim;
        for (int64_t c = 0; c < dim; ++c) {
          d_k[c] += share.d_k[static_cast<size_t>(row * dim + c)];
          d_v[c] += share.d_v[static_cast<size_t>(row * dim + c)];
        }
      }
  });
  if (findings.d_alpha != nullptr)
    for (int64_t head = 0; head < num_heads; ++head)
      findings.d_alpha[head / group] += shares[static_cast<size_t>(head)].d_alpha;
}

}  // namespace headwater::gradient
