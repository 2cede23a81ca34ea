// Attention of GradientModel, forward and back, by strips of kTile query rows against all keys
// before them.
#include <algorithm>
#include <cmath>

#include "engine/calibrate/gradients.h"
#include "kernels/gradient/rows.h"

namespace headwater {
namespace {

using gradient::gemm;
using gradient::rows_of;
using gradient::transposed;

constexpr int64_t kTile = MaskingEffects::kBlockTokens;
constexpr float kEffectEps = 1e-5f;  // where one entry holds the whole row

// What a streaming head sees of the n positions up to its own: [0, sinks) and [recent, n).
struct Window {
  int64_t sinks, recent, n;

  Window(const HeadGates& gates, int64_t num_positions) : n(num_positions) {
    recent = std::max<int64_t>(0, n - gates.recent);
    sinks = std::min<int64_t>(gates.sinks, recent);
  }
  int64_t size() const { return sinks + n - recent; }
  void gather(const float* row, float* out) const {
    std::copy_n(row, sinks, out);
    std::copy(row + recent, row + n, out + sinks);
  }
  void add_to(const float* part, float factor, float* row) const {
    gradient::add_scaled(factor, part, sinks, row);
    gradient::add_scaled(factor, part + sinks, n - recent, row + recent);
  }
};

void softmax(float* x, float scale, int64_t n) {
  const float sum = gradient::exp_of(x, gradient::max_of(x, n), scale, n, x);
  gradient::scale_by(1.0f / sum, n, x);
}

// Logits of one row into attention weights: those of a full head, mixed with a streaming head's.
void mixed_weights(
    float* row, int64_t n, float scale, const HeadGates* gates, float alpha, float* part) {
  if (gates == nullptr || alpha == 1.0f) return softmax(row, scale, n);
  const Window window(*gates, n);
  window.gather(row, part);
  softmax(part, scale, window.size());
  if (alpha == 0.0f) {
    std::fill_n(row, n, 0.0f);
  } else {
    softmax(row, scale, n);
    gradient::scale_by(alpha, n, row);
  }
  window.add_to(part, 1.0f - alpha, row);
}

// Both at once: logits into weights, their gradients into those of the logits. Returns the gradient
// by alpha.
double mixed_gradients(float* row,
                       float* d_row,
                       int64_t n,
                       float scale,
                       const HeadGates& gates,
                       float alpha,
                       float* part,
                       float* d_part) {
  const Window window(gates, n);
  window.gather(row, part);
  window.gather(d_row, d_part);
  softmax(part, scale, window.size());
  const float part_mean = gradient::dot_of(part, d_part, window.size());
  gradient::softmax_gradient(
      (1.0f - alpha) * scale, part, d_part, part_mean, window.size(), d_part);

  softmax(row, scale, n);
  const float mean = gradient::dot_of(row, d_row, n);
  gradient::softmax_gradient(alpha * scale, row, d_row, mean, n, d_row);
  window.add_to(d_part, 1.0f, d_row);
  gradient::scale_by(alpha, n, row);
  window.add_to(part, 1.0f - alpha, row);
  return double{mean} - part_mean;
}

struct HeadView {  // of one query head in q | k | v rows
  const float *q, *k, *v;
};

HeadView head_view(
    const float* qkv, const HeadShape& heads, int64_t q_cols, int64_t kv_cols, int32_t head) {
  const int64_t kv = head / (heads.num_heads / heads.num_kv_heads);
  return {qkv + int64_t{head} * heads.head_dim,
          qkv + q_cols + kv * heads.head_dim,
          qkv + q_cols + kv_cols + kv * heads.head_dim};
}

float attention_scale(const LayerSpec& layer) {
  return layer.attention_scale != 0.0f ? layer.attention_scale
                                       : 1.0f / std::sqrt(static_cast<float>(layer.heads.head_dim));
}

}  // namespace

// One query head's share of the gradients by K and V, and by its gate.
struct GradientModel::HeadGradients {
  float* d_q = nullptr;         // [rows, q columns], this head's columns
  std::vector<float> d_k, d_v;  // [rows, head_dim]
  double d_alpha = 0;
};

void GradientModel::reserve(Strip& strip) const {
  strip.scores.resize(static_cast<size_t>(kTile * rows_));
  strip.d_scores.resize(static_cast<size_t>(kTile * rows_));
  strip.window.resize(static_cast<size_t>(rows_));
  strip.d_window.resize(static_cast<size_t>(rows_));
}

// out: [rows, q columns], valid from row begin
void GradientModel::attend(size_t layer, int64_t begin, float* out) {
  const float* qkv = layers_[layer].qkv.data();
  const int64_t stride = q_cols_ + 2 * kv_cols_, dim = heads_.head_dim;
  const float scale = attention_scale(spec_.layers[layer]);
  const int64_t first_tile = begin / kTile;
  const int64_t num_tiles = (rows_ + kTile - 1) / kTile - first_tile;
  pool_.parallel_for(num_tiles * heads_.num_heads, [&](int64_t task, int thread) {
    Strip& strip = strips_[static_cast<size_t>(thread)];
    const auto head = static_cast<int32_t>(task % heads_.num_heads);
    const int64_t kv = head / (heads_.num_heads / heads_.num_kv_heads);
    const HeadView x = head_view(qkv, heads_, q_cols_, kv_cols_, head);
    const float alpha = gates_ == nullptr
                            ? 1.0f
                            : gates_->alpha[layer * static_cast<size_t>(heads_.num_kv_heads) +
                                            static_cast<size_t>(kv)];
    const int64_t row = (first_tile + num_tiles - 1 - task / heads_.num_heads) * kTile;
    const int64_t end = std::min(row + kTile, rows_);
    float* scores = strip.scores.data();
    gemm(end - row,
         end,
         dim,
         rows_of(x.q + row * stride, stride),
         transposed(x.k, stride),
         scores,
         end,
         false,
         strip.gemm);
    for (int64_t r = row; r < end; ++r) {
      float* weights = scores + (r - row) * end;
      mixed_weights(weights, r + 1, scale, gates_, alpha, strip.window.data());
      std::fill(weights + r + 1, weights + end, 0.0f);
    }
    gemm(end - row,
         dim,
         end,
         rows_of(scores, end),
         rows_of(x.v, stride),
         out + row * q_cols_ + head * dim,
         q_cols_,
         false,
         strip.gemm);
  });
}

void GradientModel::attend_backward_head(size_t layer,
                                         int32_t head,
                                         int64_t begin,
                                         const float* d_out,
                                         HeadGradients& gradients,
                                         Strip& strip,
                                         const Outputs& outputs) {
  const int64_t stride = q_cols_ + 2 * kv_cols_, dim = heads_.head_dim;
  const HeadView x = head_view(layers_[layer].qkv.data(), heads_, q_cols_, kv_cols_, head);
  const float scale = attention_scale(spec_.layers[layer]);
  const int64_t kv = head / (heads_.num_heads / heads_.num_kv_heads);
  const size_t gate = layer * static_cast<size_t>(heads_.num_kv_heads) + static_cast<size_t>(kv);
  float* scores = strip.scores.data();
  float* d_scores = strip.d_scores.data();
  for (int64_t row = begin / kTile * kTile; row < rows_; row += kTile) {
    const int64_t end = std::min(row + kTile, rows_);
    const float* d_head = d_out + row * q_cols_ + head * dim;
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
         rows_of(d_head, q_cols_),
         transposed(x.v, stride),
         d_scores,
         end,
         false,
         strip.gemm);
    for (int64_t r = row; r < end; ++r) {
      float* weights = scores + (r - row) * end;
      float* d_weights = d_scores + (r - row) * end;
      const int64_t n = r + 1;
      if (gates_ != nullptr) {
        gradients.d_alpha += mixed_gradients(weights,
                                             d_weights,
                                             n,
                                             scale,
                                             *gates_,
                                             gates_->alpha[gate],
                                             strip.window.data(),
                                             strip.d_window.data());
      } else {
        softmax(weights, scale, n);
        const float mean = gradient::dot_of(weights, d_weights, n);
        if (outputs.effects != nullptr && r >= outputs.effects->first_row)
          for (int64_t c = 0; c < n; c += kTile)
            outputs.effects->at(static_cast<int64_t>(layer) * heads_.num_heads + head,
                                static_cast<int32_t>(row / kTile),
                                static_cast<int32_t>(c / kTile)) +=
                gradient::masking_effect(
                    weights + c, d_weights + c, mean, kEffectEps, std::min(kTile, n - c));
        gradient::softmax_gradient(scale, weights, d_weights, mean, n, d_weights);
      }
      std::fill(weights + n, weights + end, 0.0f);
      std::fill(d_weights + n, d_weights + end, 0.0f);
    }
    gemm(end - row,
         dim,
         end,
         rows_of(d_scores, end),
         rows_of(x.k, stride),
         gradients.d_q + row * stride,
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
         rows_of(d_head, q_cols_),
         gradients.d_v.data(),
         dim,
         true,
         strip.gemm);
  }
}

// d_out: [rows, q columns], zero before begin; d_qkv: [rows, q | k | v columns], before RoPE
void GradientModel::attend_backward(
    size_t layer, int64_t begin, const float* d_out, float* d_qkv, const Outputs& outputs) {
  const int64_t stride = q_cols_ + 2 * kv_cols_, dim = heads_.head_dim;
  std::fill_n(d_qkv, rows_ * stride, 0.0f);
  std::vector<HeadGradients> shares(static_cast<size_t>(heads_.num_heads));
  pool_.parallel_for(heads_.num_heads, [&](int64_t head, int thread) {
    HeadGradients& share = shares[static_cast<size_t>(head)];
    share.d_q = d_qkv + head * dim;
    share.d_k.assign(static_cast<size_t>(rows_ * dim), 0.0f);
    share.d_v.assign(static_cast<size_t>(rows_ * dim), 0.0f);
    attend_backward_head(layer,
                         static_cast<int32_t>(head),
                         begin,
                         d_out,
                         share,
                         strips_[static_cast<size_t>(thread)],
                         outputs);
  });
  const int64_t group = heads_.num_heads / heads_.num_kv_heads;
  for_rows(0, rows_, [&](int64_t row) {
    for (int64_t head = 0; head < heads_.num_heads; ++head) {
      const HeadGradients& share = shares[static_cast<size_t>(head)];
      float* d_k = d_qkv + row * stride + q_cols_ + head / group * dim;
      float* d_v = d_k + kv_cols_;
      for (int64_t c = 0; c < dim; ++c) {
        d_k[c] += share.d_k[static_cast<size_t>(row * dim + c)];
        d_v[c] += share.d_v[static_cast<size_t>(row * dim + c)];
      }
    }
  });
  if (outputs.d_alpha != nullptr)
    for (int64_t head = 0; head < heads_.num_heads; ++head)
      (*outputs.d_alpha)[layer * static_cast<size_t>(heads_.num_kv_heads) +
                         static_cast<size_t>(head / group)] +=
          shares[static_cast<size_t>(head)].d_alpha;
  rotate(spec_.layers[layer], true, d_qkv);
}

}  // namespace headwater
