// GradientModel: a model's exact fp32 forward pass and the reverse pass through its activations,
// for calibrations that differentiate: DuoAttention's gates and MoA's masking effects. Weights are
// frozen and read from the files, decoded block by block each time they are used.
//
// One sequence at a time, every position at once. What the reverse pass needs is kept per layer,
// about 4 * (2 * hidden + qkv + 2 * ffn) bytes per token; attention weights are computed again in
// strips of kBlockTokens rows, never kept. One thread calls; the pool works.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/model/loaded_model.h"
#include "kernels/base/thread_pool.h"
#include "kernels/gradient/gemm.h"

namespace headwater {

// A mix per KV head: y = alpha * y_full + (1 - alpha) * y_stream, where y_stream sees the first
// `sinks` positions and the latest `recent`. alpha = 1 is the model itself, bit for bit.
// Source: DuoAttention (arXiv 2410.10819), section 2.2.
struct HeadGates {
  std::vector<float> alpha;  // [num_layers, num_kv_heads]
  int32_t sinks = 64;
  int32_t recent = 256;
};

// Sums of |effect on the loss| of masking single attention entries, by blocks of tokens.
// Source: MoA (arXiv 2406.14909), section 4.1.
struct MaskingEffects {
  static constexpr int32_t kBlockTokens = 64;
  int32_t num_blocks = 0;
  int32_t first_row = 0;     // entries of earlier rows are left out
  std::vector<double> sums;  // [num_layers, num_heads, num_blocks (row), num_blocks (column)]

  double& at(int64_t layer_head, int32_t row, int32_t column) {
    return sums[static_cast<size_t>((layer_head * num_blocks + row) * num_blocks + column)];
  }
};

class GradientModel {
 public:
  // files and pool are not owned. All layers must have the same heads.
  GradientModel(const LoadedModel& files, ThreadPool& pool);

  const ModelSpec& spec() const { return spec_; }

  // Rows before first_row are computed only as far as later ones need them.
  // gates: null = the model itself.
  void forward(std::span<const int32_t> tokens, int32_t first_row, const HeadGates* gates);
  // The last hidden state of rows, after the output norm: [num_rows - first_row, hidden_dim].
  std::vector<float> hidden() const;
  // hidden: [rows, hidden_dim] -> [rows, vocab_size], and the way back.
  std::vector<float> logits(const std::vector<float>& hidden) const;
  std::vector<float> logits_backward(const std::vector<float>& d_logits) const;

  // What backward() shall find; null = not wanted.
  struct Outputs {
    std::vector<double>* d_alpha = nullptr;    // [num_layers, num_kv_heads]; needs gates
    MaskingEffects* effects = nullptr;         // added to; without gates
    std::vector<float>* d_embedded = nullptr;  // [num_rows, hidden_dim] of the first layer's input
  };
  // From the gradient by hidden(), through the layers of the latest forward().
  void backward(const std::vector<float>& d_hidden, const Outputs& outputs);

 private:
  struct Kept {                        // of one layer
    std::vector<float> input, middle;  // [rows, hidden] before attention, before the FFN
    std::vector<float> qkv;            // [rows, q + k + v columns], after RoPE
    std::vector<float> gate_up;        // [rows, 2 * ffn]
  };
  struct Strip {  // of one thread
    std::vector<float> scores, d_scores, window, d_window;
    gradient::GemmScratch gemm;
  };
  struct HeadGradients;

  void for_rows(int64_t begin, int64_t end, const std::function<void(int64_t row)>& body) const;
  const float* decode(const WeightView& weight, int64_t first, int64_t count) const;
  void linear(std::span<const WeightView* const> parts,
              const float* x,
              int64_t begin,
              float* y,
              bool add) const;
  void linear_backward(std::span<const WeightView* const> parts,
                       const float* dy,
                       int64_t begin,
                       float* dx) const;
  void add_bias(std::span<const WeightView* const> parts, int64_t begin, float* y) const;
  void norm(const WeightView& weight, const float* x, int64_t begin, float* y) const;
  // dx += the gradient through the norm
  void norm_backward(
      const WeightView& weight, const float* x, const float* dy, int64_t begin, float* dx) const;
  void rotate(const LayerSpec& layer, bool back, float* qkv) const;
  void attend(size_t layer, int64_t begin, float* out);
  void attend_backward(
      size_t layer, int64_t begin, const float* d_out, float* d_qkv, const Outputs& outputs);
  void attend_backward_head(size_t layer,
                            int32_t head,
                            int64_t begin,
                            const float* d_out,
                            HeadGradients& gradients,
                            Strip& strip,
                            const Outputs& outputs);
  void reserve(Strip& strip) const;

  const ModelSpec& spec_;
  const ModelWeights& weights_;
  ThreadPool& pool_;
  const HeadShape heads_;
  const int64_t q_cols_, kv_cols_;

  int64_t rows_ = 0;
  int64_t first_row_ = 0;
  const HeadGates* gates_ = nullptr;
  std::vector<Kept> layers_;
  std::vector<float> output_;  // [rows, hidden] of the last layer
  std::vector<Strip> strips_;  // one per thread
  mutable std::vector<float> decoded_;
  mutable std::vector<gradient::GemmScratch> scratch_;  // one per thread
};

}  // namespace headwater
