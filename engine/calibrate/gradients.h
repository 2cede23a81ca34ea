// GradientModel: a model's exact fp32 forward pass and the reverse pass through its activations,
// for calibrations that differentiate: DuoAttention's gates and MoA's masking effects. Weights are
// frozen, stay in their formats and are decoded each time they are used.
//
// One sequence at a time, every position at once. What the reverse pass needs is kept per layer,
// about 4 * (2 * hidden + qkv + 2 * ffn) bytes per token; where the device has no room for that,
// the last term is computed again. Attention weights always are. One thread calls.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "engine/model/loaded_model.h"
#include "kernels/gradient/gradient_ops.h"

namespace headwater {

// A mix per KV head of everything and a window (GradientAttention). alpha = 1 is the model itself,
// bit for bit.
// Source: DuoAttention (arXiv 2410.10819), section 2.2.
struct HeadGates {
  std::vector<float> alpha;  // [num_layers, num_kv_heads]
  int32_t sinks = 64;
  int32_t recent = 256;
};

// Sums of |effect on the loss| of masking single attention entries, by blocks of tokens.
// Source: MoA (arXiv 2406.14909), section 4.1.
struct MaskingEffects {
  static constexpr int32_t kBlockTokens = kEffectBlockTokens;
  int32_t num_blocks = 0;
  int32_t first_row = 0;     // entries of earlier rows are left out
  std::vector<double> sums;  // [num_layers, num_heads, num_blocks (row), num_blocks (column)]

  double& at(int64_t layer_head, int32_t row, int32_t column) {
    return sums[static_cast<size_t>((layer_head * num_blocks + row) * num_blocks + column)];
  }
};

class GradientModel {
 public:
  // files and ops are not owned. All layers must have the same heads. Throws ConfigError where the
  // dataflow has no reverse pass, LoadError or CudaError where the weights do not fit the device.
  GradientModel(const LoadedModel& files, GradientOps& ops);

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

  // For tests: what the gates' inputs may take of memory; more is computed again.
  void set_gate_bytes(int64_t most) { most_gate_bytes_ = most; }

 private:
  struct Layer {
    std::unique_ptr<Weight> qkv, o, gate_up, down;
    Buffer attn_norm, ffn_norm;  // [hidden]
    Buffer qkv_bias, o_bias;     // empty: none
    // Kept for the reverse pass
    Buffer input, middle;  // [rows, hidden] before attention, before the FFN
    Buffer kept_qkv;       // [rows, q | k | v columns], after RoPE
    Buffer kept_gate_up;   // [rows, 2 * ffn], or empty
  };

  void reserve();
  Matrix matrix(Buffer& buffer, int64_t cols) const;  // [rows, cols], grown if need be
  Matrix from(Matrix rows, int64_t begin) const { return rows.row_range(begin, rows_ - begin); }
  int64_t first_row_of(size_t layer) const { return layer + 1 == layers_.size() ? first_row_ : 0; }
  void embed(std::span<const int32_t> tokens, Matrix x) const;
  void rotate(const LayerSpec& layer, GradientOps::Turn turn, Matrix qkv) const;
  GradientAttention attention_of(size_t layer);
  Matrix gate_up_of(size_t layer);

  const ModelSpec& spec_;
  const ModelWeights& weights_;
  GradientOps& ops_;  // not owned
  const HeadShape heads_;
  const int64_t q_cols_, qkv_cols_;
  std::vector<Layer> layers_;
  std::unique_ptr<Weight> output_weight_;
  Buffer output_norm_;

  int64_t rows_ = 0;
  int64_t first_row_ = 0;
  bool gated_ = false;
  int32_t sinks_ = 0, recent_ = 0;
  Buffer alpha_;                 // [num_layers, num_kv_heads]
  Buffer x_;                     // [rows, hidden] the residual; after forward(): of the last layer
  Buffer normed_, attended_;     // [rows, hidden], [rows, q columns]: values or their gradients
  Buffer gated_rows_, gate_up_;  // [rows, ffn], likewise; [rows, 2 * ffn]
  Buffer d_x_, d_qkv_, d_gate_up_;
  int64_t most_gate_bytes_ = std::numeric_limits<int64_t>::max();
};

}  // namespace headwater
