// Llama 1 to 3, Mistral, SmolLM2, SmolLM3 and others of the same dataflow.
#include "engine/model/arch/arch_checks.h"
#include "engine/model/arch/archs.h"
#include "engine/model/arch/gguf_keys.h"
#include "engine/model/arch/layer_kinds.h"
#include "engine/model/arch/tensor_names.h"

namespace headwater::arch {
namespace {

constexpr std::string_view kWindowKey[] = {"attention.sliding_window"};

constexpr std::string_view kMistralKeys[] = {"sliding_window", "layer_types"};

void finish_mistral(const JsonObject& config, ArchReading& reading) {
  constexpr int64_t kUnlessSaid = 4096;
  if (config.is_null("sliding_window")) return;
  set_windows(reading.spec, config.integer_or("sliding_window", kUnlessSaid, kWindow), [](int32_t) {
    return true;
  });
}

// A layer without rotary embedding, every so many.
void drop_rope(ModelSpec& spec, int64_t interval) {
  for (size_t i = 0; i < spec.layers.size(); ++i)
    if (static_cast<int64_t>(i + 1) % interval == 0) spec.layers[i].rope_idx = -1;
}

constexpr int64_t kSmolLm3Interval = 4;
constexpr std::string_view kSmolLm3Keys[] = {
    "no_rope_layers", "sliding_window", "use_sliding_window", "layer_types"};

void finish_smollm3(const JsonObject& config, ArchReading& reading) {
  ModelSpec& spec = reading.spec;
  if (config.has("no_rope_layers")) {
    const std::vector<int64_t> has_rope = config.integers("no_rope_layers", {0, 1});
    check(has_rope.size() == spec.layers.size(),
          config.name(),
          "key \"no_rope_layers\" has " + std::to_string(has_rope.size()) +
              " elements, expected one per layer");
    for (size_t i = 0; i < has_rope.size(); ++i)
      if (has_rope[i] == 0) spec.layers[i].rope_idx = -1;
  } else {
    drop_rope(spec, config.integer_or("no_rope_layer_interval", kSmolLm3Interval, kLayers));
  }
  if (!config.boolean_or("use_sliding_window", false) || !config.has("sliding_window")) return;
  set_windows(spec,
              config.integer("sliding_window", kWindow),
              sliding_layers(config, spec, [&](int32_t layer) {
                return spec.layers[static_cast<size_t>(layer)].rope_idx < 0;
              }));
}

}  // namespace

constinit const Arch kLlama = {
    .name = "llama",
    .gguf_name = "llama",
    .hf_name = "llama",
    .gguf_pairing = RopePairing::kAdjacent,
    .gguf_keys = kWindowKey,
    .finish_gguf = window_on_every_layer,
    .gguf_tensors = kGgufTensors,
    .hf_tensors = kHfTensors,
};

constinit const Arch kMistral = {
    .name = "llama",
    .hf_name = "mistral",
    .defaults = {.num_kv_heads = 8},
    .config_keys = kMistralKeys,
    .finish_config = finish_mistral,
    .hf_tensors = kHfTensors,
};

constinit const Arch kSmolLm3 = {
    .name = "smollm3",
    .gguf_name = "smollm3",
    .hf_name = "smollm3",
    .gguf_pairing = RopePairing::kAdjacent,
    .defaults = {.rope_base = 2000000.0, .tied_embedding = true},
    .config_keys = kSmolLm3Keys,
    .finish_config = finish_smollm3,
    .finish_gguf = [](const GgufKeys&,
                      ArchReading& reading) { drop_rope(reading.spec, kSmolLm3Interval); },
    .gguf_tensors = kGgufTensors,
    .hf_tensors = kHfTensors,
};

}  // namespace headwater::arch
