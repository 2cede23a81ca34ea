#include "engine/model/model.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace headwater {

Model::Model(const LoadedModel& files,
             Ops& ops,
             const Limits& limits,
             const std::function<void(int64_t, int64_t)>& progress)
    : spec_(files.spec), ops_(ops), limits_(limits) {
  const ModelWeights& weights = files.weights;
  int64_t loaded_bytes = 0;
  const auto load = [&](std::span<const WeightView> parts) {
    auto weight = ops.load_weight(parts);
    for (const WeightView& part : parts) loaded_bytes += part.bytes();
    if (progress) progress(loaded_bytes, files.weight_bytes);
    return weight;
  };
  embedding_ = load(std::span(&weights.token_embedding, 1));
  if (!spec_.tied_embedding) output_ = load(std::span(&weights.output, 1));
  output_norm_ = upload({&weights.output_norm}, spec_.logit_scale);

  int64_t widest = spec_.hidden_dim, narrowest = 0;
  for (size_t i = 0; i < spec_.layers.size(); ++i) {
    const LayerSpec& spec = spec_.layers[i];
    const LayerWeights& w = weights.layers[i];
    Layer& layer = layers_.emplace_back();
    const WeightView qkv[] = {w.q, w.k, w.v};
    const WeightView gate_up[] = {w.gate, w.up};
    layer.qkv = load(qkv);
    layer.o = load(std::span(&w.o, 1));
    layer.gate_up = load(gate_up);
    layer.down = load(std::span(&w.down, 1));
    layer.attn_norm = upload({&w.attn_norm});
    layer.ffn_norm = upload({&w.ffn_norm});
    layer.attn_post_norm = upload({&w.attn_post_norm});
    layer.ffn_post_norm = upload({&w.ffn_post_norm});
    layer.q_norm = upload({&w.q_norm});
    layer.k_norm = upload({&w.k_norm});
    layer.qkv_bias = upload({&w.q_bias, &w.k_bias, &w.v_bias});
    layer.o_bias = upload({&w.o_bias});
    widest = std::max({widest, layer.qkv->rows, layer.gate_up->rows});
    narrowest = std::max(
        {narrowest, int64_t{spec.heads.num_heads} * spec.heads.head_dim, int64_t{spec.ffn_dim}});
  }

  const auto matrix = [&](int64_t rows, int64_t cols) {
    return ops.allocate(rows * cols * dtype_bytes(ops.activation_dtype()));
  };
  const int64_t rows = std::max(limits.max_rows, limits.max_logit_rows);
  residual_ = matrix(rows, spec_.hidden_dim);
  normed_ = matrix(rows, spec_.hidden_dim);
  wide_ = matrix(rows, widest);
  narrow_ = matrix(rows, narrowest);
  for (int32_t i = 0; i < limits.num_logit_buffers; ++i)
    logits_.push_back(matrix(limits.max_logit_rows, spec_.vocab_size));
  for (const RopeSpec& rope : spec_.ropes) angles_.push_back(matrix(rows, rope.rotary_dim));
}

Model::Vector Model::upload(std::initializer_list<const WeightView*> parts, float scale) {
  std::vector<float> values;
  for (const WeightView* part : parts) {
    HW_CHECK((part->data == nullptr) == ((*parts.begin())->data == nullptr), "all biases or none");
    if (part->data == nullptr) continue;
    HW_CHECK(part->format == QuantFormat::kF32, "norms and biases are F32");
    const auto* data = static_cast<const float*>(part->data);
    values.insert(values.end(), data, data + part->rows * part->cols);
  }
  if (values.empty()) return {};
  for (float& value : values) value *= scale;
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
  Vector vector{ops_.allocate(bytes)};
  ops_.upload(vector.buffer.data(), values.data(), bytes);
  return vector;
}

Matrix Model::scratch(const Buffer& buffer, int64_t rows, int64_t cols) const {
  return {buffer.data(), ops_.activation_dtype(), rows, cols, cols};
}

// What lies on the way from or to `weight`.
Matrix Model::scratch_of(const Weight& weight,
                         const Buffer& buffer,
                         int64_t rows,
                         int64_t cols) const {
  return {buffer.data(), ops_.linear_dtype(weight, rows), rows, cols, cols};
}

void Model::observe_attention(AttentionObserver observer) {
  observer_ = std::move(observer);
  int64_t widest = 0;
  for (const LayerSpec& layer : spec_.layers)
    widest = std::max(widest, int64_t{layer.heads.num_heads});
  lse_ = observer_ ? ops_.allocate(limits_.max_rows * widest * int64_t{sizeof(float)}) : Buffer{};
}

Matrix Model::forward(const StepView& step, int32_t num_long_rows, int32_t logit_buffer) {
  HW_CHECK(step.num_rows <= limits_.max_rows, "rows of a step", step.num_rows);
  HW_CHECK(step.num_logit_rows <= limits_.max_logit_rows, "logit rows", step.num_logit_rows);
  const Matrix x = scratch(residual_, step.num_rows, spec_.hidden_dim);
  ops_.embed(*embedding_, step, spec_.embedding_scale, x);
  rotate(spec_.ropes, step, 0, step.num_rows - num_long_rows);
  rotate(spec_.long_ropes, step, step.num_rows - num_long_rows, num_long_rows);
  for (int32_t layer = 0; layer < static_cast<int32_t>(layers_.size()); ++layer) {
    attention_block(layer, step, x);
    ffn_block(layer, step, x);
  }
  if (step.num_logit_rows == 0) return logits(0, logit_buffer);
  const Matrix last = scratch(wide_, step.num_logit_rows, spec_.hidden_dim);
  ops_.gather_logit_rows(x, step, last);
  const Matrix out = logits(step.num_logit_rows, logit_buffer);
  begin_branch(output_norm_, output_ ? *output_ : *embedding_, Gate::kNone, last, out);
  if (spec_.logit_softcap > 0) ops_.softcap(out, spec_.logit_softcap);
  return out;
}

Matrix Model::logits(int32_t num_rows, int32_t logit_buffer) const {
  return scratch(logits_[static_cast<size_t>(logit_buffer)], num_rows, spec_.vocab_size);
}

// The angles of count rows from `first` on.
void Model::rotate(std::span<const RopeSpec> ropes,
                   const StepView& step,
                   int32_t first,
                   int32_t count) {
  if (count == 0) return;
  StepView part = step;
  part.num_rows = count;
  part.positions += first;
  for (size_t i = 0; i < ropes.size(); ++i) {
    Matrix angles = scratch(angles_[i], count, ropes[i].rotary_dim);
    angles.data = angles_[i].data() + first * angles.stride * dtype_bytes(angles.dtype);
    ops_.rope_angles(ropes[i], part, angles);
  }
}

// out = gate(norm(x) * weight^T); x itself where the architecture does not normalise before it.
void Model::begin_branch(
    const Vector& norm, const Weight& weight, Gate gate, Matrix x, Matrix out) {
  ops_.fused_linear(weight,
                    {.x = x,
                     .norm = norm.data(),
                     .eps = spec_.rms_eps,
                     .gate = gate,
                     .out = out,
                     .normed = scratch_of(weight, normed_, x.rows, spec_.hidden_dim),
                     .product = scratch_of(weight, wide_, x.rows, weight.rows)});
}

// x += residual_scale * norm(branch * weight^T + bias)
void Model::add_branch(
    const Weight& weight, const Vector& bias, const Vector& norm, Matrix branch, Matrix x) {
  const bool plain = norm.data() == nullptr && spec_.residual_scale == 1.0f;
  const Matrix y = plain ? x : scratch(normed_, x.rows, spec_.hidden_dim);
  ops_.linear(weight, branch, y, plain ? LinearMode::kAdd : LinearMode::kOverwrite);
  if (bias.data() != nullptr) ops_.add_bias(y, bias.data());
  if (norm.data() != nullptr) ops_.rms_norm(y, norm.data(), spec_.rms_eps, y);
  if (!plain) ops_.add_scaled(y, spec_.residual_scale, x);
}

void Model::normalize_heads(const Vector& norm, int32_t num_heads, Matrix x) {
  if (spec_.qk_norm == QkNorm::kHead) ops_.head_norm(x, norm.data(), spec_.rms_eps, num_heads);
  if (spec_.qk_norm == QkNorm::kRow) ops_.rms_norm(x, norm.data(), spec_.rms_eps, x);
}

void Model::attention_block(int32_t index, const StepView& step, Matrix x) {
  static const RopeSpec kNoRope;
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const LayerSpec& spec = spec_.layers[static_cast<size_t>(index)];
  const HeadShape& heads = spec.heads;
  const int64_t q_cols = int64_t{heads.num_heads} * heads.head_dim;
  const int64_t kv_cols = int64_t{heads.num_kv_heads} * heads.head_dim;

  const int64_t qkv_cols = q_cols + 2 * kv_cols;
  const Matrix qkv = observer_ ? scratch(wide_, step.num_rows, qkv_cols)
                               : scratch_of(*layer.qkv, wide_, step.num_rows, qkv_cols);
  begin_branch(layer.attn_norm, *layer.qkv, Gate::kNone, x, qkv);
  if (layer.qkv_bias.data() != nullptr) ops_.add_bias(qkv, layer.qkv_bias.data());

  const bool rotary = spec.rope_idx >= 0;
  const RopeSpec& rope = rotary ? spec_.ropes[static_cast<size_t>(spec.rope_idx)] : kNoRope;
  const Matrix angles =
      rotary ? scratch(angles_[static_cast<size_t>(spec.rope_idx)], step.num_rows, rope.rotary_dim)
             : Matrix{};
  const Matrix q = qkv.columns(0, q_cols);
  const Matrix k = qkv.columns(q_cols, kv_cols);
  normalize_heads(layer.q_norm, heads.num_heads, q);
  normalize_heads(layer.k_norm, heads.num_kv_heads, k);
  ops_.rope_append_kv(
      index, heads, rope, step, angles, q, k, qkv.columns(q_cols + kv_cols, kv_cols));
  if (step.pages.compensates) ops_.fold_kv(index, heads, step);
  const Matrix attended = scratch_of(*layer.o, narrow_, step.num_rows, q_cols);
  const float scale = spec.attention_scale != 0.0f
                          ? spec.attention_scale
                          : 1.0f / std::sqrt(static_cast<float>(heads.head_dim));
  const Matrix lse =
      observer_ ? Matrix{lse_.data(), DType::kF32, step.num_rows, heads.num_heads, heads.num_heads}
                : Matrix{};
  ops_.attention({.layer = index,
                  .heads = heads,
                  .scale = scale,
                  .softcap = spec_.attention_softcap,
                  .q = q,
                  .out = attended,
                  .lse = lse},
                 step);
  if (observer_) observer_({index, heads, scale, spec_.attention_softcap, q, k, lse}, step);
  add_branch(*layer.o, layer.o_bias, layer.attn_post_norm, attended, x);
}

void Model::ffn_block(int32_t index, const StepView& step, Matrix x) {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int64_t ffn_dim = spec_.layers[static_cast<size_t>(index)].ffn_dim;
  const Matrix gated = scratch_of(*layer.down, narrow_, step.num_rows, ffn_dim);
  begin_branch(layer.ffn_norm, *layer.gate_up, spec_.gate, x, gated);
  add_branch(*layer.down, {}, layer.ffn_post_norm, gated, x);
}

}  // namespace headwater
