#include "engine/model/fingerprint.h"

#include <cstdint>
#include <cstdio>
#include <string_view>

namespace headwater {
namespace {

void add(std::string& text, std::string_view what, std::initializer_list<int64_t> numbers) {
  text += what;
  for (const int64_t number : numbers) text += ' ' + std::to_string(number);
  text += '\n';
}

void add_shape(std::string& text, std::string_view role, const WeightView& weight) {
  if (weight.data != nullptr) add(text, role, {weight.rows, weight.cols});
}

// What llama does not have, so that its fingerprints stay.
void add_dataflow(std::string& text, const ModelSpec& spec) {
  if (!spec.norm_before || spec.norm_after || spec.qk_norm != QkNorm::kNone ||
      spec.gate != Gate::kSilu)
    add(text,
        "dataflow",
        {spec.norm_before,
         spec.norm_after,
         static_cast<int64_t>(spec.qk_norm),
         static_cast<int64_t>(spec.gate)});
  for (const LayerSpec& layer : spec.layers)
    if (layer.window > 0) add(text, "window", {layer.window});
  if (!spec.long_ropes.empty()) add(text, "long", {spec.long_after});
}

// FNV-1a, 64 bits.
uint64_t hash(std::string_view text) {
  uint64_t value = 14695981039346656037U;
  for (const char c : text) value = (value ^ static_cast<uint8_t>(c)) * 1099511628211U;
  return value;
}

}  // namespace

std::string model_fingerprint(const LoadedModel& model) {
  const ModelSpec& spec = model.spec;
  std::string text = spec.architecture + '\n';
  add(text, "model", {spec.vocab_size, spec.hidden_dim, spec.max_positions});
  for (const RopeSpec& rope : spec.ropes) {
    add(text, "rope", {rope.rotary_dim});
    // Few digits: files that store the frequencies in 32 bits must agree with those that do not.
    char slowest[32];
    std::snprintf(
        slowest, sizeof(slowest), "%.2e", rope.inv_freq.empty() ? 0 : rope.inv_freq.back());
    text += slowest;
  }
  add_dataflow(text, spec);
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    add(text,
        "layer",
        {layer.heads.num_heads,
         layer.heads.num_kv_heads,
         layer.heads.head_dim,
         layer.ffn_dim,
         layer.rope_idx});
    if (i >= model.weights.layers.size()) continue;
    const LayerWeights& weights = model.weights.layers[i];
    add_shape(text, "q", weights.q);
    add_shape(text, "k", weights.k);
    add_shape(text, "v", weights.v);
    add_shape(text, "o", weights.o);
    add_shape(text, "q_bias", weights.q_bias);
    add_shape(text, "k_bias", weights.k_bias);
    add_shape(text, "v_bias", weights.v_bias);
    add_shape(text, "gate", weights.gate);
    add_shape(text, "up", weights.up);
    add_shape(text, "down", weights.down);
  }
  add_shape(text, "embedding", model.weights.token_embedding);
  char hex[17];
  std::snprintf(hex, sizeof(hex), "%016llx", static_cast<unsigned long long>(hash(text)));
  return hex;
}

}  // namespace headwater
