// Granite 3, dense: a multiplier each for embeddings, branches, attention and logits.
#include "engine/model/arch/arch_checks.h"
#include "engine/model/arch/archs.h"
#include "engine/model/arch/gguf_keys.h"
#include "engine/model/arch/tensor_names.h"

namespace headwater::arch {
namespace {

constexpr std::string_view kConfigKeys[] = {
    "attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"};
constexpr std::string_view kGgufKeys[] = {"embedding_scale", "logit_scale", "residual_scale"};

// scale(key): the multiplier, 1 where the file does not say.
template <typename Scale>
void set_multipliers(ModelSpec& spec,
                     Scale&& scale,
                     std::string_view embedding,
                     std::string_view residual,
                     std::string_view logits) {
  spec.embedding_scale = scale(embedding);
  spec.residual_scale = scale(residual);
  spec.logit_scale = 1.0f / scale(logits);
}

void finish_config(const JsonObject& config, ArchReading& reading) {
  const auto scale = [&](std::string_view key) {
    const double value = config.number_or(key, 1.0);
    check_scale(value, std::string(key), config.name());
    return static_cast<float>(value);
  };
  set_multipliers(
      reading.spec, scale, "embedding_multiplier", "residual_multiplier", "logits_scaling");
  for (LayerSpec& layer : reading.spec.layers)
    layer.attention_scale = scale("attention_multiplier");
}

void finish_gguf(const GgufKeys& keys, ArchReading& reading) {
  const auto scale = [&](std::string_view name) {
    const double value = keys.number_or(name, 1.0);
    check_scale(value, keys.key(name), keys.file_name());
    return static_cast<float>(value);
  };
  set_multipliers(reading.spec, scale, "embedding_scale", "residual_scale", "logit_scale");
}

}  // namespace

constinit const Arch kGranite = {
    .name = "granite",
    .gguf_name = "granite",
    .hf_name = "granite",
    .gguf_pairing = RopePairing::kAdjacent,
    .config_keys = kConfigKeys,
    .gguf_keys = kGgufKeys,
    .finish_config = finish_config,
    .finish_gguf = finish_gguf,
    .gguf_tensors = kGgufTensors,
    .hf_tensors = kHfTensors,
};

}  // namespace headwater::arch
