// What every architecture's config.json says alike, and the refusal of what it says beyond.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/io/quote.h"
#include "engine/model/arch/arch_checks.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/arch/rope_keys.h"

namespace headwater {

using namespace arch;  // NOLINT: the checks

namespace {

// Keys that change what is computed, unless they are absent, null, false, 0, 1 or empty. They are
// refused where a row does not say that it reads them; other unknown keys tell of training.
constexpr std::string_view kMeaningful[] = {
    "attention_chunk_size",
    "attention_multiplier",
    "attention_sinks",
    "attn_logit_softcapping",
    "attn_temperature_tuning",
    "clip_qkv",
    "embedding_multiplier",
    "final_logit_softcapping",
    "first_k_dense_replace",
    "layer_types",
    "logit_scale",
    "logits_scaling",
    "mlp_bias",
    "no_rope_layers",
    "num_kv_shared_layers",
    "parallel_attn",
    "qk_layernorm",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rope_interleaved",
    "scale_depth",
    "scale_emb",
    "sliding_window",
    "use_bidirectional_attention",
    "use_parallel_residual",
    "use_qk_norm",
    "use_sliding_window",
    "vision_config",
};
constexpr std::string_view kExperts[] = {
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"};

bool says_nothing(const nlohmann::json& value) {
  if (value.is_null()) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value == 0 || value == 1;
  if (!value.is_array()) return false;
  return std::all_of(value.begin(), value.end(), [](const nlohmann::json& element) {
    return element == "full_attention";
  });
}

void refuse_quantized(const JsonObject& config) {
  if (!config.has("quantization_config")) return;
  const std::string method =
      config.object("quantization_config").string_or("quant_method", "unnamed");
  throw LoadError(config.name() + ": quantization method " + quote(method) +
                  " is not supported in safetensors; expected F32, F16 or BF16 weights");
}

void refuse_extras(const JsonObject& config, const Arch& arch) {
  const std::string& file = config.name();
  const auto reads = [&](std::string_view key) {
    return std::find(arch.config_keys.begin(), arch.config_keys.end(), key) !=
           arch.config_keys.end();
  };
  for (const std::string_view key : kExperts) {
    check(!config.has(key) || says_nothing(config.value().at(key)),
          file,
          "key " + quote(key) + " asks for a mixture of experts, which is not supported");
  }
  for (const std::string_view key : kMeaningful) {
    if (!config.has(key) || reads(key)) continue;
    const nlohmann::json& value = config.value().at(key);
    check(says_nothing(value),
          file,
          "key " + quote(key) + " is " +
              (value.is_structured() ? "given"
               : value.is_string()   ? quote(value.dump())
                                     : value.dump()) +
              ", and model_type " + std::string(arch.hf_name) + " does not know it: not supported");
  }
}

void check_activation(const JsonObject& config, const Arch& arch) {
  const bool gelu = arch.gate == Gate::kGeluTanh;
  const std::string_view key =
      gelu && config.has("hidden_activation") ? "hidden_activation" : "hidden_act";
  const std::string_view expected = gelu ? "gelu_pytorch_tanh" : "silu";
  const std::string activation =
      gelu ? config.string_or(key, std::string(expected)) : config.string(key);
  check(activation == expected,
        config.name(),
        "key " + quote(key) + " is " + quote(activation) + ", expected " + quote(expected));
}

int32_t sized(const JsonObject& config, std::string_view key, int32_t fallback, IntRange range) {
  return static_cast<int32_t>(fallback > 0 ? config.integer_or(key, fallback, range)
                                           : config.integer(key, range));
}

void read_layers(const JsonObject& config, const ConfigDefaults& defaults, ModelSpec& spec) {
  LayerSpec layer;
  layer.heads.num_heads = sized(config, "num_attention_heads", defaults.num_heads, kHeads);
  const int32_t kv_heads =
      defaults.num_kv_heads > 0 ? defaults.num_kv_heads : layer.heads.num_heads;
  layer.heads.num_kv_heads =
      static_cast<int32_t>(config.integer_or("num_key_value_heads", kv_heads, kHeads));
  const int64_t head_dim = config.integer_or(
      "head_dim",
      defaults.head_dim > 0 ? defaults.head_dim : spec.hidden_dim / layer.heads.num_heads,
      kHeadDim);
  check_head_dim(head_dim, config.name());
  layer.heads.head_dim = static_cast<int32_t>(head_dim);
  layer.ffn_dim = static_cast<int32_t>(config.integer("intermediate_size", kFfn));
  spec.layers.assign(static_cast<size_t>(config.integer("num_hidden_layers", kLayers)), layer);
}

ArchReading read(const Arch& arch, const JsonObject& config) {
  refuse_extras(config, arch);
  check_activation(config, arch);
  const ConfigDefaults& defaults = arch.defaults;
  ArchReading reading;
  reading.weights = arch.hf_weights;
  if (config.boolean_or("attention_bias", false)) {
    reading.weights.qkv_bias = Presence::kRequired;
    reading.weights.o_bias = Presence::kRequired;
  }
  ModelSpec& spec = reading.spec;
  spec.architecture = arch.name;
  spec.norm_before = arch.norm_before;
  spec.norm_after = arch.norm_after;
  spec.qk_norm = arch.qk_norm;
  spec.gate = arch.gate;
  spec.vocab_size = sized(config, "vocab_size", defaults.vocab_size, kVocab);
  spec.hidden_dim = static_cast<int32_t>(config.integer("hidden_size", kHidden));
  spec.max_positions = sized(config, "max_position_embeddings", defaults.max_positions, kPositions);
  spec.rms_eps =
      static_cast<float>(defaults.rms_eps > 0 ? config.number_or("rms_norm_eps", defaults.rms_eps)
                                              : config.number("rms_norm_eps"));
  spec.tied_embedding = config.boolean_or("tie_word_embeddings", defaults.tied_embedding);
  read_layers(config, defaults, spec);
  check_spec(spec, config.name());
  const bool partial =
      std::find(arch.config_keys.begin(), arch.config_keys.end(), "partial_rotary_factor") !=
      arch.config_keys.end();
  add_rope(spec,
           RopePairing::kHalves,
           config_rope(config,
                       "full_attention",
                       defaults.rope_base,
                       spec.layers[0].heads.head_dim,
                       spec.max_positions,
                       partial));
  if (arch.finish_config != nullptr) arch.finish_config(config, reading);
  return reading;
}

}  // namespace

ArchReading read_config_arch(const Arch& arch, const JsonObject& config) {
  refuse_quantized(config);
  return arch.text_key.empty() ? read(arch, config) : read(arch, config.object(arch.text_key));
}

}  // namespace headwater
