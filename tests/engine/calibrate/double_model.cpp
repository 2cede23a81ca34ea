#include "tests/engine/calibrate/double_model.h"

#include <cmath>

namespace headwater::testing {
namespace {

using Row = std::vector<double>;

std::vector<float> decode(const WeightView& weight, int64_t row) {
  const QuantTraits& traits = quant_traits(weight.format);
  std::vector<float> out(static_cast<size_t>(weight.cols));
  traits.decode(
      static_cast<const std::byte*>(weight.data) + row * row_bytes(weight.format, weight.cols),
      weight.cols / traits.block_elements,
      out.data());
  return out;
}

// Softmax of the logits over the columns that `sees` admits; the others get 0.
template <typename Sees>
Row softmax(const Row& logits, const Sees& sees) {
  Row weights(logits.size(), 0.0);
  double largest = -1e300, sum = 0;
  for (size_t j = 0; j < logits.size(); ++j)
    if (sees(static_cast<int32_t>(j))) largest = std::max(largest, logits[j]);
  for (size_t j = 0; j < logits.size(); ++j)
    if (sees(static_cast<int32_t>(j))) sum += weights[j] = std::exp(logits[j] - largest);
  for (double& weight : weights) weight /= sum;
  return weights;
}

}  // namespace

std::vector<double> DoubleModel::embed(std::span<const int32_t> tokens) const {
  std::vector<double> out;
  for (const int32_t token : tokens)
    for (const float value : decode(files_.weights.token_embedding, token))
      out.push_back(double{value} * files_.spec.embedding_scale);
  return out;
}

std::vector<double> DoubleModel::linear(const WeightView& weight,
                                        const std::vector<double>& x) const {
  const auto inputs = static_cast<size_t>(weight.cols), outputs = static_cast<size_t>(weight.rows);
  const size_t rows = x.size() / inputs;
  std::vector<double> y(rows * outputs, 0.0);
  for (size_t o = 0; o < outputs; ++o) {
    const std::vector<float> w = decode(weight, static_cast<int64_t>(o));
    for (size_t row = 0; row < rows; ++row)
      for (size_t i = 0; i < inputs; ++i) y[row * outputs + o] += x[row * inputs + i] * w[i];
  }
  return y;
}

void DoubleModel::add_bias(const WeightView& bias, std::vector<double>& x) const {
  if (bias.data == nullptr) return;
  const auto cols = static_cast<size_t>(bias.cols);
  for (size_t i = 0; i < x.size(); ++i) x[i] += static_cast<const float*>(bias.data)[i % cols];
}

std::vector<double> DoubleModel::norm(const WeightView& weight,
                                      const std::vector<double>& x) const {
  const auto n = static_cast<size_t>(files_.spec.hidden_dim);
  std::vector<double> y(x.size());
  for (size_t row = 0; row < x.size(); row += n) {
    double squares = 0;
    for (size_t c = 0; c < n; ++c) squares += x[row + c] * x[row + c];
    const double scale =
        1 / std::sqrt(squares / static_cast<double>(n) + double{files_.spec.rms_eps});
    for (size_t c = 0; c < n; ++c)
      y[row + c] = x[row + c] * scale * static_cast<const float*>(weight.data)[c];
  }
  return y;
}

void DoubleModel::rotate(const LayerSpec& layer, int32_t num_heads, std::vector<double>& x) const {
  if (layer.rope_idx < 0) return;
  const RopeSpec& rope = files_.spec.ropes[static_cast<size_t>(layer.rope_idx)];
  const auto dim = static_cast<size_t>(layer.heads.head_dim);
  const size_t half = static_cast<size_t>(rope.rotary_dim) / 2;
  const bool adjacent = rope.pairing == RopePairing::kAdjacent;
  for (size_t start = 0; start < x.size(); start += dim) {
    const size_t position = start / (dim * static_cast<size_t>(num_heads));
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * rope.inv_freq[i];
      double& a = x[start + (adjacent ? 2 * i : i)];
      double& b = x[start + (adjacent ? 2 * i + 1 : i + half)];
      const double old_a = a;
      a = (old_a * std::cos(angle) - b * std::sin(angle)) * double{rope.magnitude};
      b = (old_a * std::sin(angle) + b * std::cos(angle)) * double{rope.magnitude};
    }
  }
}

std::vector<double> DoubleModel::attention(size_t layer,
                                           const std::vector<double>& q,
                                           const std::vector<double>& k,
                                           const std::vector<double>& v,
                                           const HeadGates* gates,
                                           const std::optional<MaskStep>& mask) const {
  const HeadShape& heads = files_.spec.layers[layer].heads;
  const auto dim = static_cast<size_t>(heads.head_dim);
  const auto num_heads = static_cast<size_t>(heads.num_heads);
  const auto num_kv = static_cast<size_t>(heads.num_kv_heads);
  const size_t rows = q.size() / (num_heads * dim);
  std::vector<double> out(q.size(), 0.0);
  for (size_t head = 0; head < num_heads; ++head) {
    const size_t kv = head / (num_heads / num_kv);
    for (size_t i = 0; i < rows; ++i) {
      Row logits(i + 1, 0.0);
      for (size_t j = 0; j <= i; ++j)
        for (size_t c = 0; c < dim; ++c)
          logits[j] += q[(i * num_heads + head) * dim + c] * k[(j * num_kv + kv) * dim + c] /
                       std::sqrt(static_cast<double>(dim));
      Row weights = softmax(logits, [](int32_t) { return true; });
      if (gates != nullptr) {
        const auto position = static_cast<int32_t>(i);
        const Row stream = softmax(
            logits, [&](int32_t j) { return j < gates->sinks || j > position - gates->recent; });
        const double alpha = gates->alpha[layer * num_kv + kv];
        for (size_t j = 0; j <= i; ++j) weights[j] = alpha * weights[j] + (1 - alpha) * stream[j];
      }
      if (mask && mask->layer == layer && mask->head == static_cast<int32_t>(head) &&
          mask->row == static_cast<int32_t>(i)) {
        const auto column = static_cast<size_t>(mask->column);
        const double masked = weights[column];
        for (size_t j = 0; j <= i; ++j)
          weights[j] += mask->amount * (j == column ? -masked : weights[j] * masked / (1 - masked));
      }
      for (size_t j = 0; j <= i; ++j)
        for (size_t c = 0; c < dim; ++c)
          out[(i * num_heads + head) * dim + c] += weights[j] * v[(j * num_kv + kv) * dim + c];
    }
  }
  return out;
}

std::vector<double> DoubleModel::hidden(std::vector<double> x,
                                        const HeadGates* gates,
                                        const std::optional<MaskStep>& mask) const {
  const auto add = [&](const std::vector<double>& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  };
  for (size_t i = 0; i < files_.spec.layers.size(); ++i) {
    const LayerWeights& w = files_.weights.layers[i];
    const LayerSpec& layer = files_.spec.layers[i];
    const std::vector<double> h = norm(w.attn_norm, x);
    std::vector<double> q = linear(w.q, h), k = linear(w.k, h), v = linear(w.v, h);
    add_bias(w.q_bias, q);
    add_bias(w.k_bias, k);
    add_bias(w.v_bias, v);
    rotate(layer, layer.heads.num_heads, q);
    rotate(layer, layer.heads.num_kv_heads, k);
    std::vector<double> y = linear(w.o, attention(i, q, k, v, gates, mask));
    add_bias(w.o_bias, y);
    add(y);

    const std::vector<double> f = norm(w.ffn_norm, x);
    std::vector<double> gate = linear(w.gate, f);
    const std::vector<double> up = linear(w.up, f);
    for (size_t c = 0; c < gate.size(); ++c) gate[c] *= up[c] / (1 + std::exp(-gate[c]));
    add(linear(w.down, gate));
  }
  return norm(files_.weights.output_norm, x);
}

}  // namespace headwater::testing
