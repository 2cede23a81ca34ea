#include "engine/model/arch/llama.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/quote.h"
#include "engine/model/rope_scaling.h"
#include "kernels/base/status.h"

namespace headwater::llama {
namespace {

constexpr IntRange kLayers{1, 1024};
constexpr IntRange kHidden{1, 1 << 18};
constexpr IntRange kHeads{1, 1 << 12};
constexpr IntRange kHeadDim{2, 1024};
constexpr IntRange kFfn{1, 1 << 22};
constexpr IntRange kVocab{1, 1 << 24};
constexpr IntRange kPositions{1, 1 << 30};

void check(bool ok, const std::string& file, const std::string& message) {
  if (!ok) throw LoadError(file + ": " + message);
}

// What both containers promise of a spec.
void check_spec(const ModelSpec& spec, const std::string& file) {
  check(spec.rms_eps > 0, file, "the epsilon of the RMS norm is not positive");
  for (const LayerSpec& layer : spec.layers) {
    const HeadShape& heads = layer.heads;
    check(heads.num_heads % heads.num_kv_heads == 0,
          file,
          std::to_string(heads.num_heads) + " query heads cannot share " +
              std::to_string(heads.num_kv_heads) + " key/value heads; expected a multiple");
    check(heads.head_dim % 2 == 0,
          file,
          "the head dimension is " + std::to_string(heads.head_dim) + ", expected an even number");
  }
}

void check_rope_numbers(double base, const RopeScaling& scaling, const std::string& file) {
  check(base > 1, file, "the RoPE base is " + std::to_string(base) + ", expected more than 1");
  check(scaling.factor >= 1,
        file,
        "the RoPE scaling factor is " + std::to_string(scaling.factor) + ", expected at least 1");
  const bool needs_original = scaling.rule == RopeRule::kLlama3 || scaling.rule == RopeRule::kYarn;
  check(!needs_original || scaling.original_positions >= 1,
        file,
        "the RoPE scaling has no original context length, expected at least 1");
  check(scaling.rule != RopeRule::kLlama3 ||
            (scaling.low_freq_factor > 0 && scaling.low_freq_factor < scaling.high_freq_factor),
        file,
        "the RoPE scaling of type llama3 needs 0 < low_freq_factor < high_freq_factor");
  check(scaling.rule != RopeRule::kYarn ||
            (scaling.beta_slow > 0 && scaling.beta_slow <= scaling.beta_fast),
        file,
        "the RoPE scaling of type yarn needs 0 < beta_slow <= beta_fast");
}

[[noreturn]] void refuse_rope(const std::string& file,
                              std::string_view type,
                              std::string_view supported) {
  throw LoadError(file + ": RoPE scaling of type " + quote(type) +
                  " is not supported; expected one of " + std::string(supported));
}

// ---- GGUF

std::string key(std::string_view name) { return "llama." + std::string(name); }

// A scalar for all layers, or one value per layer.
std::vector<int32_t> per_layer(const GgufFile& file,
                               std::string_view name,
                               size_t num_layers,
                               IntRange range) {
  const auto values = file.integers(key(name), range);
  if (!values) return {};
  check(values->size() == 1 || values->size() == num_layers,
        file.name(),
        "metadata key " + quote(key(name)) + " has " + std::to_string(values->size()) +
            " elements, expected 1 or " + std::to_string(num_layers) + " (one per layer)");
  std::vector<int32_t> out(num_layers, static_cast<int32_t>(values->front()));
  if (values->size() == num_layers) out.assign(values->begin(), values->end());
  return out;
}

std::vector<int32_t> required_per_layer(const GgufFile& file,
                                        std::string_view name,
                                        size_t num_layers,
                                        IntRange range) {
  std::vector<int32_t> values = per_layer(file, name, num_layers, range);
  check(!values.empty(),
        file.name(),
        "metadata key " + quote(key(name)) + " is missing, expected it in every such model");
  return values;
}

std::vector<float> rope_divisors(const TensorSet& tensors, int32_t rotary_dim) {
  const StoredTensor* tensor = tensors.find("rope_freqs.weight");
  if (tensor == nullptr) return {};
  check(tensor->shape == std::vector<int64_t>{rotary_dim / 2},
        describe(*tensor),
        "expected " + std::to_string(rotary_dim / 2) + " elements, one per rotated pair");
  std::vector<float> divisors = decode_tensor(*tensor);
  for (const float divisor : divisors) {
    check(std::isfinite(divisor) && divisor > 0,
          describe(*tensor),
          "has an element that is not positive and finite");
  }
  return divisors;
}

RopeScaling gguf_scaling(const GgufFile& file, int32_t max_positions) {
  RopeScaling scaling;
  const std::string type(file.string(key("rope.scaling.type")).value_or("linear"));
  const double legacy_factor = file.number(key("rope.scale_linear")).value_or(1.0);
  scaling.factor = file.number(key("rope.scaling.factor")).value_or(legacy_factor);
  scaling.magnitude = file.number(key("rope.scaling.attn_factor")).value_or(1.0);
  if (type == "none") {
    scaling.rule = RopeRule::kNone;
  } else if (type == "linear") {
    scaling.rule = RopeRule::kLinear;
  } else if (type == "yarn") {
    scaling.rule = RopeRule::kYarn;
    scaling.original_positions =
        static_cast<double>(file.integer(key("rope.scaling.original_context_length"), kPositions)
                                .value_or(max_positions));
    scaling.extrapolation = file.number(key("rope.scaling.yarn_ext_factor")).value_or(1.0);
    scaling.beta_fast = file.number(key("rope.scaling.yarn_beta_fast")).value_or(32.0);
    scaling.beta_slow = file.number(key("rope.scaling.yarn_beta_slow")).value_or(1.0);
    scaling.magnitude *= file.number(key("rope.scaling.yarn_attn_factor")).value_or(1.0) *
                         yarn_magnitude(scaling.factor);
  } else {
    refuse_rope(file.name(), type, "none, linear, yarn");
  }
  if (scaling.factor == 0) scaling.factor = 1;  // writers that mean "unscaled"
  return scaling;
}

void refuse_gguf_extras(const GgufFile& file, int32_t max_positions) {
  check(
      file.integer(key("expert_count")).value_or(0) == 0,
      file.name(),
      "metadata key \"llama.expert_count\" asks for a mixture of experts, which is not supported");
  const int64_t window = file.integer(key("attention.sliding_window")).value_or(0);
  check(window == 0 || window >= max_positions,
        file.name(),
        "metadata key \"llama.attention.sliding_window\" is " + std::to_string(window) +
            ", and sliding-window attention is not supported");
}

// ---- config.json

RopeScaling config_scaling(const JsonObject& rope, int32_t max_positions) {
  RopeScaling scaling;
  const std::string type =
      rope.has("rope_type") ? rope.string("rope_type") : rope.string_or("type", "default");
  if (type == "default") return scaling;
  if (type == "linear") {
    scaling.rule = RopeRule::kLinear;
  } else if (type == "llama3") {
    scaling.rule = RopeRule::kLlama3;
    scaling.low_freq_factor = rope.number("low_freq_factor");
    scaling.high_freq_factor = rope.number("high_freq_factor");
    scaling.original_positions =
        static_cast<double>(rope.integer("original_max_position_embeddings", kPositions));
  } else if (type == "yarn") {
    scaling.rule = RopeRule::kYarn;
    scaling.original_positions = static_cast<double>(
        rope.integer_or("original_max_position_embeddings", max_positions, kPositions));
    scaling.beta_fast = rope.number_or("beta_fast", 32.0);
    scaling.beta_slow = rope.number_or("beta_slow", 1.0);
    scaling.whole_pairs = rope.boolean_or("truncate", true);
  } else {
    refuse_rope(rope.name(), type, "default, linear, llama3, yarn");
  }
  scaling.factor = rope.number("factor");
  if (scaling.rule == RopeRule::kYarn) {
    const bool deepseek = rope.has("mscale") && rope.has("mscale_all_dim");
    const double natural = deepseek
                               ? yarn_magnitude(scaling.factor, rope.number("mscale")) /
                                     yarn_magnitude(scaling.factor, rope.number("mscale_all_dim"))
                               : yarn_magnitude(scaling.factor);
    scaling.magnitude = rope.number_or("attention_factor", natural);
  }
  return scaling;
}

RopeSpec config_rope(const JsonObject& config, int32_t head_dim, int32_t max_positions) {
  // Newer files keep everything about RoPE in one object, older ones beside it.
  const std::string_view object_key =
      config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  double base = config.number_or("rope_theta", 10000.0);
  RopeScaling scaling;
  if (config.has(object_key)) {
    const JsonObject rope = config.object(object_key);
    base = rope.number_or("rope_theta", base);
    scaling = config_scaling(rope, max_positions);
  }
  check_rope_numbers(base, scaling, config.name());
  return make_rope(RopePairing::kHalves, head_dim, base, scaling);
}

void refuse_config_extras(const JsonObject& config) {
  if (config.has("quantization_config")) {
    const std::string method =
        config.object("quantization_config").string_or("quant_method", "unnamed");
    throw LoadError(config.name() + ": quantization method " + quote(method) +
                    " is not supported in safetensors; expected F32, F16 or BF16 weights");
  }
  const std::string activation = config.string("hidden_act");
  check(activation == "silu",
        config.name(),
        "key \"hidden_act\" is " + quote(activation) + ", expected \"silu\"");
  check(!config.boolean_or("mlp_bias", false),
        config.name(),
        "key \"mlp_bias\" is true, and biases in the MLP are not supported");
  check(config.number_or("partial_rotary_factor", 1.0) == 1.0,
        config.name(),
        "key \"partial_rotary_factor\" is not 1, and partial rotation is not supported");
}

}  // namespace

ArchReading from_gguf(const GgufFile& metadata, const TensorSet& tensors) {
  const std::string& file = metadata.name();
  ArchReading reading;
  reading.attention_bias = Presence::kOptional;
  ModelSpec& spec = reading.spec;
  spec.architecture = "llama";
  spec.hidden_dim =
      static_cast<int32_t>(metadata.required_integer(key("embedding_length"), kHidden));
  spec.max_positions =
      static_cast<int32_t>(metadata.required_integer(key("context_length"), kPositions));
  spec.rms_eps =
      static_cast<float>(metadata.required_number(key("attention.layer_norm_rms_epsilon")));
  spec.tied_embedding = tensors.find("output.weight") == nullptr;
  refuse_gguf_extras(metadata, spec.max_positions);

  const GgufValue* tokens = metadata.find("tokenizer.ggml.tokens");
  const auto vocab_size = metadata.integer(key("vocab_size"), kVocab);
  check(vocab_size || tokens != nullptr,
        file,
        "metadata has neither \"llama.vocab_size\" nor \"tokenizer.ggml.tokens\", expected one of "
        "them");
  const int64_t num_rows = vocab_size ? *vocab_size : tokens->count;
  check(num_rows >= kVocab.min && num_rows <= kVocab.max,
        file,
        "the vocabulary has " + std::to_string(num_rows) + " tokens, expected 1 to " +
            std::to_string(kVocab.max));
  spec.vocab_size = static_cast<int32_t>(num_rows);

  const auto num_layers =
      static_cast<size_t>(metadata.required_integer(key("block_count"), kLayers));
  const auto num_heads = required_per_layer(metadata, "attention.head_count", num_layers, kHeads);
  auto num_kv_heads = per_layer(metadata, "attention.head_count_kv", num_layers, kHeads);
  if (num_kv_heads.empty()) num_kv_heads = num_heads;
  const auto ffn_dims = required_per_layer(metadata, "feed_forward_length", num_layers, kFfn);
  const int64_t head_dim = metadata.integer(key("attention.key_length"), kHeadDim)
                               .value_or(spec.hidden_dim / num_heads[0]);
  check(head_dim >= kHeadDim.min && head_dim <= kHeadDim.max,
        file,
        "the head dimension is " + std::to_string(head_dim) + ", expected 2 to " +
            std::to_string(kHeadDim.max));
  const int64_t value_dim =
      metadata.integer(key("attention.value_length"), kHeadDim).value_or(head_dim);
  check(value_dim == head_dim,
        file,
        "metadata key \"llama.attention.value_length\" is " + std::to_string(value_dim) +
            ", expected " + std::to_string(head_dim) + " as the keys");
  for (size_t i = 0; i < num_layers; ++i) {
    LayerSpec layer;
    layer.heads = {num_heads[i], num_kv_heads[i], static_cast<int32_t>(head_dim)};
    layer.ffn_dim = ffn_dims[i];
    spec.layers.push_back(layer);
  }
  check_spec(spec, file);

  const auto rotary_dim = static_cast<int32_t>(
      metadata.integer(key("rope.dimension_count"), {2, head_dim}).value_or(head_dim));
  check(rotary_dim % 2 == 0,
        file,
        "metadata key \"llama.rope.dimension_count\" is " + std::to_string(rotary_dim) +
            ", expected an even number");
  const double base = metadata.number(key("rope.freq_base")).value_or(10000.0);
  const RopeScaling scaling = gguf_scaling(metadata, spec.max_positions);
  check_rope_numbers(base, scaling, file);
  spec.ropes.push_back(make_rope(
      RopePairing::kAdjacent, rotary_dim, base, scaling, rope_divisors(tensors, rotary_dim)));
  return reading;
}

ArchReading from_config(const JsonObject& config) {
  refuse_config_extras(config);
  ArchReading reading;
  reading.attention_bias =
      config.boolean_or("attention_bias", false) ? Presence::kRequired : Presence::kAbsent;
  ModelSpec& spec = reading.spec;
  spec.architecture = "llama";
  spec.vocab_size = static_cast<int32_t>(config.integer("vocab_size", kVocab));
  spec.hidden_dim = static_cast<int32_t>(config.integer("hidden_size", kHidden));
  spec.max_positions = static_cast<int32_t>(config.integer("max_position_embeddings", kPositions));
  spec.rms_eps = static_cast<float>(config.number("rms_norm_eps"));
  spec.tied_embedding = config.boolean_or("tie_word_embeddings", false);

  const int64_t num_heads = config.integer("num_attention_heads", kHeads);
  const int64_t head_dim = config.integer_or("head_dim", spec.hidden_dim / num_heads, kHeadDim);
  check(head_dim >= kHeadDim.min && head_dim <= kHeadDim.max,
        config.name(),
        "the head dimension is " + std::to_string(head_dim) + ", expected 2 to " +
            std::to_string(kHeadDim.max));
  LayerSpec layer;
  layer.heads.num_heads = static_cast<int32_t>(num_heads);
  layer.heads.num_kv_heads =
      static_cast<int32_t>(config.integer_or("num_key_value_heads", num_heads, kHeads));
  layer.heads.head_dim = static_cast<int32_t>(head_dim);
  layer.ffn_dim = static_cast<int32_t>(config.integer("intermediate_size", kFfn));
  spec.layers.assign(static_cast<size_t>(config.integer("num_hidden_layers", kLayers)), layer);
  check_spec(spec, config.name());
  spec.ropes.push_back(config_rope(config, layer.heads.head_dim, spec.max_positions));
  return reading;
}

}  // namespace headwater::llama
