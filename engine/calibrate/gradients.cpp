#include "engine/calibrate/gradients.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "kernels/base/status.h"
#include "kernels/gradient/rows.h"

namespace headwater {
namespace {

using gradient::gemm;
using gradient::rows_of;
using gradient::transposed;

constexpr int64_t kTaskRows = 192;               // of a product with a weight
constexpr int64_t kDecodedElements = 4'000'000;  // of a weight at a time

const float* values(const WeightView& vector) { return static_cast<const float*>(vector.data); }

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

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

}  // namespace

GradientModel::GradientModel(const LoadedModel& files, ThreadPool& pool)
    : spec_(files.spec),
      weights_(files.weights),
      pool_(pool),
      heads_(files.spec.layers.at(0).heads),
      q_cols_(int64_t{heads_.num_heads} * heads_.head_dim),
      kv_cols_(int64_t{heads_.num_kv_heads} * heads_.head_dim),
      layers_(files.spec.layers.size()),
      strips_(static_cast<size_t>(pool.num_threads())),
      scratch_(static_cast<size_t>(pool.num_threads())) {
  check_dataflow(files.spec);
  for (const LayerSpec& layer : spec_.layers)
    HW_CHECK(layer.heads.num_heads == heads_.num_heads &&
                 layer.heads.num_kv_heads == heads_.num_kv_heads &&
                 layer.heads.head_dim == heads_.head_dim,
             "layers differ in their heads");
}

void GradientModel::for_rows(int64_t begin,
                             int64_t end,
                             const std::function<void(int64_t row)>& body) const {
  constexpr int64_t kRows = 16;
  pool_.parallel_for((end - begin + kRows - 1) / kRows, [&](int64_t task, int) {
    const int64_t stop = std::min(end, begin + (task + 1) * kRows);
    for (int64_t row = begin + task * kRows; row < stop; ++row) body(row);
  });
}

// Outputs [first, first + count) of a weight, [count, cols]; valid until the next call.
const float* GradientModel::decode(const WeightView& weight, int64_t first, int64_t count) const {
  const QuantTraits& traits = quant_traits(weight.format);
  const int64_t bytes = row_bytes(weight.format, weight.cols);
  const auto size = static_cast<size_t>(count * weight.cols);
  if (decoded_.size() < size) decoded_.resize(size);
  for_rows(0, count, [&](int64_t row) {
    traits.decode(static_cast<const std::byte*>(weight.data) + (first + row) * bytes,
                  weight.cols / traits.block_elements,
                  decoded_.data() + row * weight.cols);
  });
  return decoded_.data();
}

// y[begin.., outputs of the parts] (+)= x * W^T
void GradientModel::linear(std::span<const WeightView* const> parts,
                           const float* x,
                           int64_t begin,
                           float* y,
                           bool add) const {
  int64_t outputs = 0;
  for (const WeightView* part : parts) outputs += part->rows;
  int64_t column = 0;
  for (const WeightView* part : parts) {
    const int64_t inputs = part->cols;
    const int64_t block = std::max<int64_t>(1, kDecodedElements / inputs);
    for (int64_t first = 0; first < part->rows; first += block) {
      const int64_t count = std::min(block, part->rows - first);
      const float* w = decode(*part, first, count);
      pool_.parallel_for((rows_ - begin + kTaskRows - 1) / kTaskRows,
                         [&](int64_t task, int thread) {
                           const int64_t row = begin + task * kTaskRows;
                           gemm(std::min(kTaskRows, rows_ - row),
                                count,
                                inputs,
                                rows_of(x + row * inputs, inputs),
                                transposed(w, inputs),
                                y + row * outputs + column + first,
                                outputs,
                                add,
                                scratch_[static_cast<size_t>(thread)]);
                         });
    }
    column += part->rows;
  }
}

// dx[begin.., inputs] = dy * W
void GradientModel::linear_backward(std::span<const WeightView* const> parts,
                                    const float* dy,
                                    int64_t begin,
                                    float* dx) const {
  int64_t outputs = 0;
  for (const WeightView* part : parts) outputs += part->rows;
  int64_t column = 0;
  for (const WeightView* part : parts) {
    const int64_t inputs = part->cols;
    const int64_t block = std::max<int64_t>(1, kDecodedElements / inputs);
    for (int64_t first = 0; first < part->rows; first += block) {
      const int64_t count = std::min(block, part->rows - first);
      const float* w = decode(*part, first, count);
      pool_.parallel_for((rows_ - begin + kTaskRows - 1) / kTaskRows,
                         [&](int64_t task, int thread) {
                           const int64_t row = begin + task * kTaskRows;
                           gemm(std::min(kTaskRows, rows_ - row),
                                inputs,
                                count,
                                rows_of(dy + row * outputs + column + first, outputs),
                                rows_of(w, inputs),
                                dx + row * inputs,
                                inputs,
                                column + first > 0,
                                scratch_[static_cast<size_t>(thread)]);
                         });
    }
    column += part->rows;
  }
}

void GradientModel::add_bias(std::span<const WeightView* const> parts,
                             int64_t begin,
                             float* y) const {
  if (parts[0]->data == nullptr) return;
  int64_t outputs = 0;
  for (const WeightView* part : parts) outputs += part->cols;
  int64_t column = 0;
  for (const WeightView* part : parts) {
    for (int64_t row = begin; row < rows_; ++row)
      for (int64_t c = 0; c < part->cols; ++c) y[row * outputs + column + c] += values(*part)[c];
    column += part->cols;
  }
}

void GradientModel::norm(const WeightView& weight, const float* x, int64_t begin, float* y) const {
  const int64_t n = spec_.hidden_dim;
  for_rows(begin, rows_, [&](int64_t row) {
    const float* in = x + row * n;
    const float mean = gradient::dot_of(in, in, n) / static_cast<float>(n);
    const float scale = 1.0f / std::sqrt(mean + spec_.rms_eps);
    for (int64_t c = 0; c < n; ++c) y[row * n + c] = in[c] * scale * values(weight)[c];
  });
}

void GradientModel::norm_backward(
    const WeightView& weight, const float* x, const float* dy, int64_t begin, float* dx) const {
  const int64_t n = spec_.hidden_dim;
  for_rows(begin, rows_, [&](int64_t row) {
    const float* in = x + row * n;
    const float* by = dy + row * n;
    const float mean = gradient::dot_of(in, in, n) / static_cast<float>(n);
    const float scale = 1.0f / std::sqrt(mean + spec_.rms_eps);
    double along = 0;
    for (int64_t c = 0; c < n; ++c) along += double{by[c]} * values(weight)[c] * in[c];
    const auto pull = static_cast<float>(along * scale * scale / static_cast<double>(n));
    for (int64_t c = 0; c < n; ++c)
      dx[row * n + c] += scale * (by[c] * values(weight)[c] - pull * in[c]);
  });
}

// Rotates q and k of every row by its angles, or back (the transpose, magnitude included).
void GradientModel::rotate(const LayerSpec& layer, bool back, float* qkv) const {
  if (layer.rope_idx < 0) return;
  const RopeSpec& rope = spec_.ropes[static_cast<size_t>(layer.rope_idx)];
  const int64_t half = rope.rotary_dim / 2;
  const bool adjacent = rope.pairing == RopePairing::kAdjacent;
  const int64_t step = adjacent ? 2 : 1, distance = adjacent ? 1 : half;
  const int64_t num_heads = heads_.num_heads + heads_.num_kv_heads;
  for_rows(0, rows_, [&](int64_t row) {
    float* x = qkv + row * (q_cols_ + 2 * kv_cols_);
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(row) * rope.inv_freq[static_cast<size_t>(i)];
      const float cosine = static_cast<float>(std::cos(angle)) * rope.magnitude;
      const float sine = static_cast<float>(std::sin(angle)) * (back ? -1 : 1) * rope.magnitude;
      for (int64_t head = 0; head < num_heads; ++head) {
        float& a = x[head * heads_.head_dim + i * step];
        float& b = x[head * heads_.head_dim + i * step + distance];
        const float old_a = a;
        a = old_a * cosine - b * sine;
        b = old_a * sine + b * cosine;
      }
    }
  });
}

void GradientModel::forward(std::span<const int32_t> tokens,
                            int32_t first_row,
                            const HeadGates* gates) {
  HW_CHECK(!tokens.empty() && first_row >= 0 && first_row < static_cast<int32_t>(tokens.size()),
           "a row of the sequence",
           first_row);
  rows_ = static_cast<int64_t>(tokens.size());
  first_row_ = first_row;
  gates_ = gates;
  for (Strip& strip : strips_) reserve(strip);
  const auto matrix = [&](int64_t cols) {
    return std::vector<float>(static_cast<size_t>(rows_ * cols));
  };

  std::vector<float> x = matrix(spec_.hidden_dim), normed = matrix(spec_.hidden_dim);
  for (int64_t row = 0; row < rows_; ++row) {
    const WeightView& table = weights_.token_embedding;
    const QuantTraits& traits = quant_traits(table.format);
    const int32_t token = tokens[static_cast<size_t>(row)];
    HW_CHECK(token >= 0 && token < table.rows, "a token of the vocabulary", token);
    traits.decode(
        static_cast<const std::byte*>(table.data) + token * row_bytes(table.format, table.cols),
        table.cols / traits.block_elements,
        x.data() + row * spec_.hidden_dim);
  }
  if (spec_.embedding_scale != 1.0f)
    gradient::scale_by(spec_.embedding_scale, rows_ * spec_.hidden_dim, x.data());

  std::vector<float> attended = matrix(q_cols_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerWeights& w = weights_.layers[i];
    Kept& kept = layers_[i];
    const int64_t ffn = spec_.layers[i].ffn_dim;
    const int64_t begin = i + 1 == layers_.size() ? first_row_ : 0;
    kept.input = x;
    norm(w.attn_norm, x.data(), 0, normed.data());
    kept.qkv.resize(static_cast<size_t>(rows_ * (q_cols_ + 2 * kv_cols_)));
    const WeightView* qkv[] = {&w.q, &w.k, &w.v};
    const WeightView* qkv_bias[] = {&w.q_bias, &w.k_bias, &w.v_bias};
    linear(qkv, normed.data(), 0, kept.qkv.data(), false);
    add_bias(qkv_bias, 0, kept.qkv.data());
    rotate(spec_.layers[i], false, kept.qkv.data());
    attend(i, begin, attended.data());
    const WeightView* o[] = {&w.o};
    const WeightView* o_bias[] = {&w.o_bias};
    linear(o, attended.data(), begin, x.data(), true);
    add_bias(o_bias, begin, x.data());

    kept.middle = x;
    norm(w.ffn_norm, x.data(), begin, normed.data());
    kept.gate_up.resize(static_cast<size_t>(rows_ * 2 * ffn));
    const WeightView* gate_up[] = {&w.gate, &w.up};
    linear(gate_up, normed.data(), begin, kept.gate_up.data(), false);
    std::vector<float> gated = matrix(ffn);
    for_rows(begin, rows_, [&](int64_t row) {
      const float* gate = kept.gate_up.data() + row * 2 * ffn;
      for (int64_t c = 0; c < ffn; ++c)
        gated[static_cast<size_t>(row * ffn + c)] = gate[c] * sigmoid(gate[c]) * gate[ffn + c];
    });
    const WeightView* down[] = {&w.down};
    linear(down, gated.data(), begin, x.data(), true);
  }
  output_ = std::move(x);
}

std::vector<float> GradientModel::hidden() const {
  std::vector<float> all(output_.size());
  norm(weights_.output_norm, output_.data(), first_row_, all.data());
  return {all.begin() + first_row_ * spec_.hidden_dim, all.end()};
}

std::vector<float> GradientModel::logits(const std::vector<float>& hidden) const {
  const WeightView& head = weights_.output;
  const auto rows = static_cast<int64_t>(hidden.size()) / spec_.hidden_dim;
  std::vector<float> out(static_cast<size_t>(rows * head.rows));
  const int64_t block = std::max<int64_t>(1, kDecodedElements / head.cols);
  for (int64_t first = 0; first < head.rows; first += block) {
    const int64_t count = std::min(block, head.rows - first);
    gemm(rows,
         count,
         head.cols,
         rows_of(hidden.data(), head.cols),
         transposed(decode(head, first, count), head.cols),
         out.data() + first,
         head.rows,
         false,
         scratch_[0]);
  }
  return out;
}

std::vector<float> GradientModel::logits_backward(const std::vector<float>& d_logits) const {
  const WeightView& head = weights_.output;
  const auto rows = static_cast<int64_t>(d_logits.size()) / head.rows;
  std::vector<float> out(static_cast<size_t>(rows * head.cols));
  const int64_t block = std::max<int64_t>(1, kDecodedElements / head.cols);
  for (int64_t first = 0; first < head.rows; first += block) {
    const int64_t count = std::min(block, head.rows - first);
    gemm(rows,
         head.cols,
         count,
         rows_of(d_logits.data() + first, head.rows),
         rows_of(decode(head, first, count), head.cols),
         out.data(),
         head.cols,
         first > 0,
         scratch_[0]);
  }
  return out;
}

void GradientModel::backward(const std::vector<float>& d_hidden, const Outputs& outputs) {
  const int64_t hidden = spec_.hidden_dim;
  HW_CHECK(static_cast<int64_t>(d_hidden.size()) == (rows_ - first_row_) * hidden,
           "one row of gradient per row of hidden()",
           d_hidden.size());
  HW_CHECK(outputs.d_alpha == nullptr || gates_ != nullptr, "gradients by gates need gates");
  HW_CHECK(outputs.effects == nullptr || gates_ == nullptr,
           "effects are those of the model itself");
  if (outputs.d_alpha != nullptr)
    outputs.d_alpha->assign(layers_.size() * static_cast<size_t>(heads_.num_kv_heads), 0.0);

  std::vector<float> padded(static_cast<size_t>(rows_ * hidden), 0.0f);
  std::copy(d_hidden.begin(), d_hidden.end(), padded.begin() + first_row_ * hidden);
  std::vector<float> dx(static_cast<size_t>(rows_ * hidden), 0.0f);
  norm_backward(weights_.output_norm, output_.data(), padded.data(), first_row_, dx.data());

  std::vector<float> d_normed(static_cast<size_t>(rows_ * hidden), 0.0f);
  std::vector<float> d_attended(static_cast<size_t>(rows_ * q_cols_), 0.0f);
  std::vector<float> d_qkv(static_cast<size_t>(rows_ * (q_cols_ + 2 * kv_cols_)));
  for (size_t i = layers_.size(); i-- > 0;) {
    const LayerWeights& w = weights_.layers[i];
    const Kept& kept = layers_[i];
    const int64_t ffn = spec_.layers[i].ffn_dim;
    const int64_t begin = i + 1 == layers_.size() ? first_row_ : 0;

    std::vector<float> d_gated(static_cast<size_t>(rows_ * ffn));
    std::vector<float> d_gate_up(static_cast<size_t>(rows_ * 2 * ffn));
    const WeightView* down[] = {&w.down};
    linear_backward(down, dx.data(), begin, d_gated.data());
    for_rows(begin, rows_, [&](int64_t row) {
      const float* gate = kept.gate_up.data() + row * 2 * ffn;
      const float* d = d_gated.data() + row * ffn;
      float* d_gate = d_gate_up.data() + row * 2 * ffn;
      for (int64_t c = 0; c < ffn; ++c) {
        const float s = sigmoid(gate[c]);
        d_gate[c] = d[c] * gate[ffn + c] * s * (1.0f + gate[c] * (1.0f - s));
        d_gate[ffn + c] = d[c] * gate[c] * s;
      }
    });
    const WeightView* gate_up[] = {&w.gate, &w.up};
    linear_backward(gate_up, d_gate_up.data(), begin, d_normed.data());
    norm_backward(w.ffn_norm, kept.middle.data(), d_normed.data(), begin, dx.data());

    const WeightView* o[] = {&w.o};
    linear_backward(o, dx.data(), begin, d_attended.data());
    attend_backward(i, begin, d_attended.data(), d_qkv.data(), outputs);
    const WeightView* qkv[] = {&w.q, &w.k, &w.v};
    linear_backward(qkv, d_qkv.data(), 0, d_normed.data());
    norm_backward(w.attn_norm, kept.input.data(), d_normed.data(), 0, dx.data());
  }
  if (outputs.d_embedded != nullptr) *outputs.d_embedded = std::move(dx);
}

}  // namespace headwater
