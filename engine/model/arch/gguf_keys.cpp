// What every architecture's GGUF says alike, and the refusal of what it says beyond.
#include "engine/model/arch/gguf_keys.h"

#include <algorithm>
#include <array>

#include "engine/io/quote.h"
#include "engine/model/arch/arch_checks.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/arch/rope_keys.h"

namespace headwater {

using namespace arch;  // NOLINT: the checks

namespace {

// Read here, or without influence on what is computed.
constexpr std::string_view kCommonKeys[] = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.causal",
    "vocab_size",
    "tensor_data_layout",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
};

bool says_nothing(const GgufValue& value) {
  return std::all_of(
      value.bytes.begin(), value.bytes.end(), [](std::byte byte) { return byte == std::byte{0}; });
}

void refuse_unknown_keys(const GgufKeys& keys, const Arch& arch) {
  const std::string& file = keys.file_name();
  check(keys.integer("expert_count").value_or(0) == 0,
        file,
        "metadata key " + quote(keys.key("expert_count")) +
            " asks for a mixture of experts, which is not supported");
  check(keys.file().boolean(keys.key("attention.causal")).value_or(true),
        file,
        "metadata key " + quote(keys.key("attention.causal")) +
            " is false, and attention to later tokens is not supported");
  const std::string prefix = keys.key("");
  const auto names = [](std::span<const std::string_view> list, std::string_view name) {
    return std::find(list.begin(), list.end(), name) != list.end();
  };
  for (const auto& [key, value] : keys.file().metadata()) {
    if (!key.starts_with(prefix) || says_nothing(value)) continue;
    const std::string_view name = key.substr(prefix.size());
    check(names(kCommonKeys, name) || names(arch.gguf_keys, name),
          file,
          "metadata key " + quote(key) + " is not known for architecture " +
              std::string(arch.gguf_name) +
              ", so the model might not be computed as trained: not supported");
  }
}

std::vector<int32_t> required_per_layer(const GgufKeys& keys,
                                        std::string_view name,
                                        size_t num_layers,
                                        IntRange range) {
  std::vector<int32_t> values = keys.per_layer(name, num_layers, range);
  check(!values.empty(),
        keys.file_name(),
        "metadata key " + quote(keys.key(name)) + " is missing, expected it in every such model");
  return values;
}

int32_t vocabulary_rows(const GgufKeys& keys) {
  const GgufValue* tokens = keys.file().find("tokenizer.ggml.tokens");
  const auto vocab_size = keys.integer("vocab_size", kVocab);
  check(vocab_size || tokens != nullptr,
        keys.file_name(),
        "metadata has neither " + quote(keys.key("vocab_size")) +
            " nor \"tokenizer.ggml.tokens\", expected one of them");
  const int64_t num_rows = vocab_size ? *vocab_size : tokens->count;
  check(num_rows >= kVocab.min && num_rows <= kVocab.max,
        keys.file_name(),
        "the vocabulary has " + std::to_string(num_rows) + " tokens, expected 1 to " +
            std::to_string(kVocab.max));
  return static_cast<int32_t>(num_rows);
}

void read_layers(const GgufKeys& keys, ModelSpec& spec) {
  const std::string& file = keys.file_name();
  const auto num_layers = static_cast<size_t>(keys.required_integer("block_count", kLayers));
  const auto num_heads = required_per_layer(keys, "attention.head_count", num_layers, kHeads);
  auto num_kv_heads = keys.per_layer("attention.head_count_kv", num_layers, kHeads);
  if (num_kv_heads.empty()) num_kv_heads = num_heads;
  const auto ffn_dims = required_per_layer(keys, "feed_forward_length", num_layers, kFfn);
  const int64_t head_dim =
      keys.integer("attention.key_length", kHeadDim).value_or(spec.hidden_dim / num_heads[0]);
  check_head_dim(head_dim, file);
  const int64_t value_dim = keys.integer("attention.value_length", kHeadDim).value_or(head_dim);
  check(value_dim == head_dim,
        file,
        "metadata key " + quote(keys.key("attention.value_length")) + " is " +
            std::to_string(value_dim) + ", expected " + std::to_string(head_dim) + " as the keys");
  const double scale = keys.number_or("attention.scale", 0.0);
  if (scale != 0.0) check_scale(scale, keys.key("attention.scale"), file);
  for (size_t i = 0; i < num_layers; ++i) {
    LayerSpec layer;
    layer.heads = {num_heads[i], num_kv_heads[i], static_cast<int32_t>(head_dim)};
    layer.ffn_dim = ffn_dims[i];
    layer.attention_scale = static_cast<float>(scale);
    spec.layers.push_back(layer);
  }
}

}  // namespace

std::vector<int32_t> GgufKeys::per_layer(std::string_view name,
                                         size_t num_layers,
                                         IntRange range) const {
  const auto values = file_.integers(key(name), range);
  if (!values) return {};
  check(values->size() == 1 || values->size() == num_layers,
        file_.name(),
        "metadata key " + quote(key(name)) + " has " + std::to_string(values->size()) +
            " elements, expected 1 or " + std::to_string(num_layers) + " (one per layer)");
  std::vector<int32_t> out(num_layers, static_cast<int32_t>(values->front()));
  if (values->size() == num_layers) out.assign(values->begin(), values->end());
  return out;
}

ArchReading read_gguf_arch(const Arch& arch, const GgufFile& metadata, const TensorSet& tensors) {
  const GgufKeys keys(metadata, tensors, arch.gguf_name);
  refuse_unknown_keys(keys, arch);
  ArchReading reading;
  reading.weights = {Presence::kOptional, Presence::kOptional, 0.0f};
  ModelSpec& spec = reading.spec;
  spec.architecture = arch.name;
  spec.norm_before = arch.norm_before;
  spec.norm_after = arch.norm_after;
  spec.qk_norm = arch.qk_norm;
  spec.gate = arch.gate;
  spec.hidden_dim = static_cast<int32_t>(keys.required_integer("embedding_length", kHidden));
  spec.max_positions = static_cast<int32_t>(keys.required_integer("context_length", kPositions));
  spec.rms_eps = static_cast<float>(keys.required_number("attention.layer_norm_rms_epsilon"));
  spec.tied_embedding = tensors.find("output.weight") == nullptr;
  spec.vocab_size = vocabulary_rows(keys);
  read_layers(keys, spec);
  check_spec(spec, metadata.name());
  add_rope(
      spec, arch.gguf_pairing, gguf_rope(keys, spec.layers[0].heads.head_dim, spec.max_positions));
  if (arch.finish_gguf != nullptr) arch.finish_gguf(keys, reading);
  return reading;
}

}  // namespace headwater
