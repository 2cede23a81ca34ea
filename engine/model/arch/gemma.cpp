// Gemma 2 and 3: norms before and behind each branch, windows on most layers. Of the multimodal
// Gemma 3 the text model is read.
#include <algorithm>
#include <cmath>

#include "engine/model/arch/arch_checks.h"
#include "engine/model/arch/archs.h"
#include "engine/model/arch/gguf_keys.h"
#include "engine/model/arch/layer_kinds.h"
#include "engine/model/arch/rope_keys.h"
#include "engine/model/arch/tensor_names.h"

namespace headwater::arch {
namespace {

constexpr int32_t kGemma2Period = 2;
constexpr int32_t kGemma3Period = 6;
constexpr double kGemma3LocalBase = 10000.0;

void scale_embedding(ModelSpec& spec) {
  spec.embedding_scale = std::sqrt(static_cast<float>(spec.hidden_dim));
}

void scale_attention(ModelSpec& spec, double divisor) {
  for (LayerSpec& layer : spec.layers)
    layer.attention_scale = static_cast<float>(1.0 / std::sqrt(divisor));
}

LayerRule all_but_every(int64_t period) {
  return [period](int32_t layer) { return (layer + 1) % period != 0; };
}

// Layers with a window turn by a rotary embedding of their own.
void add_local_rope(ModelSpec& spec,
                    RopePairing pairing,
                    const RopeReading& local,
                    const LayerRule& sliding) {
  const int32_t idx = add_rope(spec, pairing, local);
  for (size_t i = 0; i < spec.layers.size(); ++i)
    if (sliding(static_cast<int32_t>(i))) spec.layers[i].rope_idx = idx;
}

float config_softcap(const JsonObject& config, std::string_view key, double unless_said) {
  if (config.is_null(key)) return 0.0f;
  const double cap = config.number_or(key, unless_said);
  if (cap == 0) return 0.0f;
  check_scale(cap, std::string(key), config.name());
  return static_cast<float>(cap);
}

float gguf_softcap(const GgufKeys& keys, std::string_view name, double unless_said) {
  const double cap = keys.number_or(name, unless_said);
  if (cap == 0) return 0.0f;
  check_scale(cap, keys.key(name), keys.file_name());
  return static_cast<float>(cap);
}

void finish_config(const JsonObject& config, ArchReading& reading) {
  ModelSpec& spec = reading.spec;
  scale_embedding(spec);
  const double divisor = config.number_or("query_pre_attn_scalar", 256.0);
  check_scale(divisor, "query_pre_attn_scalar", config.name());
  scale_attention(spec, divisor);
}

// Files do not say the scale: it is 1 / sqrt(head size) but in the largest models, told by their
// number of layers (llama.cpp tells them so).
void finish_gguf(ModelSpec& spec, size_t layers_of_largest) {
  scale_embedding(spec);
  if (spec.layers.size() == layers_of_largest && spec.layers[0].attention_scale == 0.0f)
    scale_attention(spec, std::max(1, spec.hidden_dim / spec.layers[0].heads.num_heads));
}

constexpr std::string_view kGemma2ConfigKeys[] = {"attn_logit_softcapping",
                                                  "final_logit_softcapping",
                                                  "layer_types",
                                                  "query_pre_attn_scalar",
                                                  "sliding_window"};
constexpr std::string_view kGemma2GgufKeys[] = {"attention.sliding_window",
                                                "attention.sliding_window_pattern",
                                                "attn_logit_softcapping",
                                                "final_logit_softcapping"};

void finish_gemma2_config(const JsonObject& config, ArchReading& reading) {
  finish_config(config, reading);
  ModelSpec& spec = reading.spec;
  spec.attention_softcap = config_softcap(config, "attn_logit_softcapping", 50.0);
  spec.logit_softcap = config_softcap(config, "final_logit_softcapping", 30.0);
  set_windows(spec,
              config.integer_or("sliding_window", 4096, {1, kWindow.max}),
              sliding_layers(config, spec, all_but_every(kGemma2Period)));
}

void finish_gemma2_gguf(const GgufKeys& keys, ArchReading& reading) {
  ModelSpec& spec = reading.spec;
  finish_gguf(spec, 46);  // 27B
  spec.attention_softcap = gguf_softcap(keys, "attn_logit_softcapping", 50.0);
  spec.logit_softcap = gguf_softcap(keys, "final_logit_softcapping", 30.0);
  set_windows(spec,
              keys.integer("attention.sliding_window", {1, kWindow.max}).value_or(4096),
              sliding_layers(keys, spec, kGemma2Period));
}

constexpr std::string_view kGemma3ConfigKeys[] = {
    "final_logit_softcapping", "layer_types", "query_pre_attn_scalar", "sliding_window"};
constexpr std::string_view kGemma3GgufKeys[] = {"attention.sliding_window",
                                                "attention.sliding_window_pattern",
                                                "final_logit_softcapping",
                                                "rope.freq_base_swa"};

void finish_gemma3_config(const JsonObject& config, ArchReading& reading) {
  finish_config(config, reading);
  ModelSpec& spec = reading.spec;
  spec.logit_softcap = config_softcap(config, "final_logit_softcapping", 0.0);
  const int64_t period = config.integer_or("sliding_window_pattern", kGemma3Period, kLayers);
  const LayerRule sliding = sliding_layers(config, spec, all_but_every(period));
  const int32_t head_dim = spec.layers[0].heads.head_dim;
  RopeReading local{.rotary_dim = head_dim,
                    .base = config.number_or("rope_local_base_freq", kGemma3LocalBase)};
  if (config.has("rope_parameters") && config.object("rope_parameters").has("sliding_attention"))
    local =
        config_rope(config, "sliding_attention", local.base, head_dim, spec.max_positions, false);
  check_rope(local.base, local.scaling, config.name());
  add_local_rope(spec, RopePairing::kHalves, local, sliding);
  set_windows(spec, config.integer_or("sliding_window", 4096, {1, kWindow.max}), sliding);
}

void finish_gemma3_gguf(const GgufKeys& keys, ArchReading& reading) {
  ModelSpec& spec = reading.spec;
  finish_gguf(spec, 62);  // 27B
  spec.logit_softcap = gguf_softcap(keys, "final_logit_softcapping", 0.0);
  const int64_t window = keys.integer("attention.sliding_window", kWindow).value_or(0);
  if (window == 0) return;
  const LayerRule sliding = sliding_layers(keys, spec, kGemma3Period);
  const RopeReading local{.rotary_dim = spec.ropes[0].rotary_dim,
                          .base = keys.number_or("rope.freq_base_swa", kGemma3LocalBase)};
  check_rope(local.base, local.scaling, keys.file_name());
  add_local_rope(spec, spec.ropes[0].pairing, local, sliding);
  set_windows(spec, window, sliding);
}

constexpr WeightRules kNormsAreOffsets = {.norm_offset = 1.0f};  // GGUF has them added

constexpr std::string_view kNotText[] = {
    ".rotary_emb.inv_freq", "vision_tower.", "multi_modal_projector."};
constexpr TensorNames multimodal(TensorNames names) {
  names.ignored = kNotText;
  return names;
}
constexpr std::pair<std::string_view, std::string_view> kTextRenames[] = {
    {"language_model.model.", "model."},
    {"language_model.lm_head.", "lm_head."},
    {"model.language_model.", "model."},
};

constexpr ConfigDefaults kGemma3Defaults = {.num_heads = 8,
                                            .num_kv_heads = 4,
                                            .head_dim = 256,
                                            .vocab_size = 262208,
                                            .max_positions = 131072,
                                            .rms_eps = 1e-6,
                                            .rope_base = 1000000.0,
                                            .tied_embedding = true};

}  // namespace

constinit const Arch kGemma2 = {
    .name = "gemma2",
    .gguf_name = "gemma2",
    .hf_name = "gemma2",
    .norm_after = true,
    .gate = Gate::kGeluTanh,
    .defaults = {.num_kv_heads = 4, .head_dim = 256, .rms_eps = 1e-6, .tied_embedding = true},
    .hf_weights = kNormsAreOffsets,
    .config_keys = kGemma2ConfigKeys,
    .gguf_keys = kGemma2GgufKeys,
    .finish_config = finish_gemma2_config,
    .finish_gguf = finish_gemma2_gguf,
    .gguf_tensors = kGgufTensors,
    .hf_tensors = with_post_norms(kHfTensors),
};

constinit const Arch kGemma3Text = {
    .name = "gemma3",
    .hf_name = "gemma3_text",
    .norm_after = true,
    .qk_norm = QkNorm::kHead,
    .gate = Gate::kGeluTanh,
    .defaults = kGemma3Defaults,
    .hf_weights = kNormsAreOffsets,
    .config_keys = kGemma3ConfigKeys,
    .finish_config = finish_gemma3_config,
    .hf_tensors = with_post_norms(kHfTensors),
};

constinit const Arch kGemma3 = {
    .name = "gemma3",
    .gguf_name = "gemma3",
    .hf_name = "gemma3",
    .norm_after = true,
    .qk_norm = QkNorm::kHead,
    .gate = Gate::kGeluTanh,
    .defaults = kGemma3Defaults,
    .hf_weights = kNormsAreOffsets,
    .text_key = "text_config",
    .config_keys = kGemma3ConfigKeys,
    .gguf_keys = kGemma3GgufKeys,
    .finish_config = finish_gemma3_config,
    .finish_gguf = finish_gemma3_gguf,
    .gguf_tensors = kGgufTensors,
    .hf_tensors = multimodal(with_post_norms(kHfTensors)),
    .hf_renames = kTextRenames,
};

}  // namespace headwater::arch
