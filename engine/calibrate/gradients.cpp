#include "engine/calibrate/gradients.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/base/check.h"
#include "kernels/base/status.h"
#include "kernels/gradient/rows.h"

namespace headwater {
namespace {

using Turn = GradientOps::Turn;

constexpr int64_t kFloatBytes = sizeof(float);
// Of the device, beside what is kept: operations have scratch of their own.
constexpr int64_t kSpareBytes = int64_t{2} << 30;

// The reverse pass knows llama's dataflow.
void check_dataflow(const ModelSpec& spec) {
  const bool plain =
      spec.norm_before && !spec.norm_after && spec.qk_norm == QkNorm::kNone &&
      spec.gate == Gate::kSilu && spec.residual_scale == 1.0f && spec.logit_scale == 1.0f &&
      spec.attention_softcap == 0 && spec.logit_softcap == 0 && spec.long_ropes.empty() &&
      std::ranges::all_of(spec.layers, [](const LayerSpec& layer) { return layer.window == 0; });
  if (!plain)
    throw ConfigError(
        "methods duo and moa take gradients, which are not supported for architecture " +
        spec.architecture + "; razor and measured work");
}

std::unique_ptr<Weight> load(GradientOps& ops, std::initializer_list<WeightView> parts) {
  return ops.load_weight({parts.begin(), parts.size()});
}

// F32 vectors, one behind another; empty if the model lacks them.
Buffer load_vectors(GradientOps& ops, std::initializer_list<WeightView> parts) {
  std::vector<float> values;
  for (const WeightView& part : parts) {
    if (part.data == nullptr) return {};
    const auto* begin = static_cast<const float*>(part.data);
    values.insert(values.end(), begin, begin + part.cols);
  }
  const auto bytes = static_cast<int64_t>(values.size()) * kFloatBytes;
  Buffer buffer = ops.allocate(bytes);
  ops.upload(buffer.data(), values.data(), bytes);
  return buffer;
}

Matrix rows_in(const Buffer& buffer, int64_t rows, int64_t cols) {
  return {buffer.data(), DType::kF32, rows, cols, cols};
}

std::vector<float> download(GradientOps& ops, Matrix rows) {
  std::vector<float> values(static_cast<size_t>(rows.rows * rows.cols));
  ops.download(values.data(), rows.data, rows.rows * rows.cols * kFloatBytes);
  return values;
}

void upload(GradientOps& ops, const std::vector<float>& values, Matrix rows) {
  ops.upload(rows.data, values.data(), static_cast<int64_t>(values.size()) * kFloatBytes);
}

}  // namespace

GradientModel::GradientModel(const LoadedModel& files, GradientOps& ops)
    : spec_(files.spec),
      weights_(files.weights),
      ops_(ops),
      heads_(files.spec.layers.at(0).heads),
      q_cols_(int64_t{heads_.num_heads} * heads_.head_dim),
      qkv_cols_(int64_t{heads_.num_heads + 2 * heads_.num_kv_heads} * heads_.head_dim) {
  check_dataflow(files.spec);
  for (const LayerSpec& layer : spec_.layers)
    HW_CHECK(layer.heads.num_heads == heads_.num_heads &&
                 layer.heads.num_kv_heads == heads_.num_kv_heads &&
                 layer.heads.head_dim == heads_.head_dim,
             "layers differ in their heads");
  for (const LayerWeights& w : weights_.layers) {
    Layer layer;
    layer.qkv = load(ops, {w.q, w.k, w.v});
    layer.o = load(ops, {w.o});
    layer.gate_up = load(ops, {w.gate, w.up});
    layer.down = load(ops, {w.down});
    layer.attn_norm = load_vectors(ops, {w.attn_norm});
    layer.ffn_norm = load_vectors(ops, {w.ffn_norm});
    layer.qkv_bias = load_vectors(ops, {w.q_bias, w.k_bias, w.v_bias});
    layer.o_bias = load_vectors(ops, {w.o_bias});
    layers_.push_back(std::move(layer));
  }
  output_weight_ = load(ops, {weights_.output});
  output_norm_ = load_vectors(ops, {weights_.output_norm});
}

Matrix GradientModel::matrix(Buffer& buffer, int64_t cols) const {
  const int64_t bytes = rows_ * cols * kFloatBytes;
  if (buffer.bytes() < bytes) {
    buffer = {};  // before the larger one is there
    buffer = ops_.allocate(bytes);
  }
  return rows_in(buffer, rows_, cols);
}

// Room for rows_ rows; keeps what the gates read if that fits too.
void GradientModel::reserve() {
  const int64_t hidden = spec_.hidden_dim;
  int64_t widest = 0, gate_bytes = 0, held = 0;
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    matrix(layer.input, hidden);
    matrix(layer.middle, hidden);
    matrix(layer.kept_qkv, qkv_cols_);
    widest = std::max<int64_t>(widest, spec_.layers[i].ffn_dim);
    gate_bytes += rows_ * 2 * spec_.layers[i].ffn_dim * kFloatBytes;
    held += layer.kept_gate_up.bytes();
  }
  for (Buffer* buffer : {&x_, &normed_, &d_x_}) matrix(*buffer, hidden);
  matrix(attended_, q_cols_);
  matrix(d_qkv_, qkv_cols_);
  matrix(gated_rows_, widest);
  matrix(d_gate_up_, 2 * widest);
  const bool keep =
      gate_bytes <= most_gate_bytes_ && gate_bytes - held <= ops_.free_bytes() - kSpareBytes;
  if (!keep) matrix(gate_up_, 2 * widest);
  for (size_t i = 0; i < layers_.size(); ++i)
    if (keep)
      matrix(layers_[i].kept_gate_up, 2 * int64_t{spec_.layers[i].ffn_dim});
    else
      layers_[i].kept_gate_up = {};
}

void GradientModel::embed(std::span<const int32_t> tokens, Matrix x) const {
  const WeightView& table = weights_.token_embedding;
  const QuantTraits& traits = quant_traits(table.format);
  std::vector<float> rows(static_cast<size_t>(x.rows * x.cols));
  for (int64_t row = 0; row < x.rows; ++row) {
    const int32_t token = tokens[static_cast<size_t>(row)];
    HW_CHECK(token >= 0 && token < table.rows, "a token of the vocabulary", token);
    traits.decode(
        static_cast<const std::byte*>(table.data) + token * row_bytes(table.format, table.cols),
        table.cols / traits.block_elements,
        rows.data() + row * x.cols);
  }
  if (spec_.embedding_scale != 1.0f)
    gradient::scale_by(spec_.embedding_scale, x.rows * x.cols, rows.data());
  upload(ops_, rows, x);
}

void GradientModel::rotate(const LayerSpec& layer, Turn turn, Matrix qkv) const {
  if (layer.rope_idx >= 0)
    ops_.rotate(spec_.ropes[static_cast<size_t>(layer.rope_idx)], heads_, turn, qkv);
}

GradientAttention GradientModel::attention_of(size_t layer) {
  GradientAttention args;
  args.heads = heads_;
  const float scale = spec_.layers[layer].attention_scale;
  args.scale = scale != 0.0f ? scale : 1.0f / std::sqrt(static_cast<float>(heads_.head_dim));
  args.qkv = matrix(layers_[layer].kept_qkv, qkv_cols_);
  args.first_row = first_row_of(layer);
  if (gated_) args.alpha = alpha_.as<float>() + layer * static_cast<size_t>(heads_.num_kv_heads);
  args.sinks = sinks_;
  args.recent = recent_;
  return args;
}

// What the gates of a layer read: kept, or computed from what the FFN read.
Matrix GradientModel::gate_up_of(size_t i) {
  Layer& layer = layers_[i];
  const int64_t begin = first_row_of(i), cols = layer.gate_up->rows;
  if (layer.kept_gate_up.bytes() > 0) return matrix(layer.kept_gate_up, cols);
  const Matrix normed = matrix(normed_, spec_.hidden_dim), gate_up = matrix(gate_up_, cols);
  const Matrix middle = matrix(layer.middle, spec_.hidden_dim);
  ops_.rms_norm(
      from(middle, begin), layer.ffn_norm.as<float>(), spec_.rms_eps, from(normed, begin));
  ops_.linear(*layer.gate_up, from(normed, begin), from(gate_up, begin), LinearMode::kOverwrite);
  return gate_up;
}

void GradientModel::forward(std::span<const int32_t> tokens,
                            int32_t first_row,
                            const HeadGates* gates) {
  HW_CHECK(!tokens.empty() && first_row >= 0 && first_row < static_cast<int32_t>(tokens.size()),
           "a row of the sequence",
           first_row);
  rows_ = static_cast<int64_t>(tokens.size());
  first_row_ = first_row;
  gated_ = gates != nullptr;
  if (gated_) {
    HW_CHECK(gates->alpha.size() == layers_.size() * static_cast<size_t>(heads_.num_kv_heads),
             "a gate per KV head",
             gates->alpha.size());
    const auto bytes = static_cast<int64_t>(gates->alpha.size()) * kFloatBytes;
    if (alpha_.bytes() == 0) alpha_ = ops_.allocate(bytes);
    ops_.upload(alpha_.data(), gates->alpha.data(), bytes);
    sinks_ = gates->sinks;
    recent_ = gates->recent;
  }
  try {
    reserve();
  } catch (const CudaError& e) {
    throw CudaError("gradients over " + std::to_string(rows_) + " tokens do not fit: " + e.what() +
                    "; for calibrate: lower max-tokens, or device cpu");
  }

  const int64_t hidden = spec_.hidden_dim;
  const Matrix x = matrix(x_, hidden), normed = matrix(normed_, hidden);
  const Matrix attended = matrix(attended_, q_cols_);
  embed(tokens, x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const int64_t begin = first_row_of(i);
    const Matrix qkv = matrix(layer.kept_qkv, qkv_cols_);
    ops_.copy(x, matrix(layer.input, hidden));
    ops_.rms_norm(x, layer.attn_norm.as<float>(), spec_.rms_eps, normed);
    ops_.linear(*layer.qkv, normed, qkv, LinearMode::kOverwrite);
    if (layer.qkv_bias.bytes() > 0) ops_.add_bias(qkv, layer.qkv_bias.as<float>());
    rotate(spec_.layers[i], Turn::kForward, qkv);
    ops_.attention(attention_of(i), attended);
    ops_.linear(*layer.o, from(attended, begin), from(x, begin), LinearMode::kAdd);
    if (layer.o_bias.bytes() > 0) ops_.add_bias(from(x, begin), layer.o_bias.as<float>());

    ops_.copy(x, matrix(layer.middle, hidden));
    const Matrix gated = matrix(gated_rows_, spec_.layers[i].ffn_dim);
    Buffer& room = layer.kept_gate_up.bytes() > 0 ? layer.kept_gate_up : gate_up_;
    const Matrix gate_up = matrix(room, layer.gate_up->rows);
    ops_.rms_norm(from(x, begin), layer.ffn_norm.as<float>(), spec_.rms_eps, from(normed, begin));
    ops_.linear(*layer.gate_up, from(normed, begin), from(gate_up, begin), LinearMode::kOverwrite);
    ops_.silu_mul(from(gate_up, begin), from(gated, begin));
    ops_.linear(*layer.down, from(gated, begin), from(x, begin), LinearMode::kAdd);
  }
}

std::vector<float> GradientModel::hidden() const {
  const int64_t rows = rows_ - first_row_;
  const Buffer normed = ops_.allocate(rows * spec_.hidden_dim * kFloatBytes);
  const Matrix out = rows_in(normed, rows, spec_.hidden_dim);
  ops_.rms_norm(from(rows_in(x_, rows_, spec_.hidden_dim), first_row_),
                output_norm_.as<float>(),
                spec_.rms_eps,
                out);
  return download(ops_, out);
}

std::vector<float> GradientModel::logits(const std::vector<float>& hidden) const {
  const auto rows = static_cast<int64_t>(hidden.size()) / spec_.hidden_dim;
  const Buffer in = ops_.allocate(rows * spec_.hidden_dim * kFloatBytes);
  const Buffer out = ops_.allocate(rows * output_weight_->rows * kFloatBytes);
  const Matrix x = rows_in(in, rows, spec_.hidden_dim),
               y = rows_in(out, rows, output_weight_->rows);
  upload(ops_, hidden, x);
  ops_.linear(*output_weight_, x, y, LinearMode::kOverwrite);
  return download(ops_, y);
}

std::vector<float> GradientModel::logits_backward(const std::vector<float>& d_logits) const {
  const auto rows = static_cast<int64_t>(d_logits.size()) / output_weight_->rows;
  const Buffer in = ops_.allocate(rows * output_weight_->rows * kFloatBytes);
  const Buffer out = ops_.allocate(rows * spec_.hidden_dim * kFloatBytes);
  const Matrix dy = rows_in(in, rows, output_weight_->rows);
  const Matrix dx = rows_in(out, rows, spec_.hidden_dim);
  upload(ops_, d_logits, dy);
  ops_.linear_backward(*output_weight_, dy, dx);
  return download(ops_, dx);
}

void GradientModel::backward(const std::vector<float>& d_hidden, const Outputs& outputs) {
  const int64_t hidden = spec_.hidden_dim;
  HW_CHECK(static_cast<int64_t>(d_hidden.size()) == (rows_ - first_row_) * hidden,
           "one row of gradient per row of hidden()",
           d_hidden.size());
  HW_CHECK(outputs.d_alpha == nullptr || gated_, "gradients by gates need gates");
  HW_CHECK(outputs.effects == nullptr || !gated_, "effects are those of the model itself");
  const int64_t num_gates = static_cast<int64_t>(layers_.size()) * heads_.num_kv_heads;
  constexpr int64_t kDoubleBytes = sizeof(double);
  Buffer d_alpha, effects;
  if (outputs.d_alpha != nullptr) d_alpha = ops_.allocate(num_gates * kDoubleBytes);
  if (outputs.effects != nullptr) {
    const std::vector<double>& sums = outputs.effects->sums;
    effects = ops_.allocate(static_cast<int64_t>(sums.size()) * kDoubleBytes);
    ops_.upload(effects.data(), sums.data(), effects.bytes());
  }

  const Matrix dx = matrix(d_x_, hidden), d_normed = matrix(normed_, hidden);
  const Matrix d_attended = matrix(attended_, q_cols_), d_qkv = matrix(d_qkv_, qkv_cols_);
  ops_.clear(dx);
  ops_.clear(d_attended);
  upload(ops_, d_hidden, from(d_normed, first_row_));
  ops_.rms_norm_backward(from(matrix(x_, hidden), first_row_),
                         output_norm_.as<float>(),
                         spec_.rms_eps,
                         from(d_normed, first_row_),
                         from(dx, first_row_));
  for (size_t i = layers_.size(); i-- > 0;) {
    Layer& layer = layers_[i];
    const int64_t begin = first_row_of(i), ffn = spec_.layers[i].ffn_dim;
    const Matrix gate_up = gate_up_of(i);
    const Matrix d_gated = matrix(gated_rows_, ffn), d_gate_up = matrix(d_gate_up_, 2 * ffn);
    ops_.linear_backward(*layer.down, from(dx, begin), from(d_gated, begin));
    ops_.silu_mul_backward(from(gate_up, begin), from(d_gated, begin), from(d_gate_up, begin));
    ops_.linear_backward(*layer.gate_up, from(d_gate_up, begin), from(d_normed, begin));
    ops_.rms_norm_backward(from(matrix(layer.middle, hidden), begin),
                           layer.ffn_norm.as<float>(),
                           spec_.rms_eps,
                           from(d_normed, begin),
                           from(dx, begin));

    ops_.linear_backward(*layer.o, from(dx, begin), from(d_attended, begin));
    AttentionFindings findings;
    if (outputs.d_alpha != nullptr)
      findings.d_alpha = d_alpha.as<double>() + i * static_cast<size_t>(heads_.num_kv_heads);
    if (outputs.effects != nullptr) {
      findings.num_blocks = outputs.effects->num_blocks;
      findings.first_effect_row = outputs.effects->first_row;
      findings.effects = effects.as<double>() + static_cast<int64_t>(i) * heads_.num_heads *
                                                    findings.num_blocks * findings.num_blocks;
    }
    ops_.attention_backward(attention_of(i), d_attended, d_qkv, findings);
    rotate(spec_.layers[i], Turn::kBack, d_qkv);
    ops_.linear_backward(*layer.qkv, d_qkv, d_normed);
    ops_.rms_norm_backward(
        matrix(layer.input, hidden), layer.attn_norm.as<float>(), spec_.rms_eps, d_normed, dx);
  }
  if (outputs.d_embedded != nullptr) *outputs.d_embedded = download(ops_, dx);
  if (outputs.d_alpha != nullptr) {
    outputs.d_alpha->resize(static_cast<size_t>(num_gates));
    ops_.download(outputs.d_alpha->data(), d_alpha.data(), d_alpha.bytes());
  }
  if (outputs.effects != nullptr)
    ops_.download(outputs.effects->sums.data(), effects.data(), effects.bytes());
}

}  // namespace headwater
