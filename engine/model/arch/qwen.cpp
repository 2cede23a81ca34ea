// Qwen2 and Qwen2.5 (biases on q, k and v), Qwen3 (norms on the heads of q and k).
#include "engine/model/arch/arch_checks.h"
#include "engine/model/arch/archs.h"
#include "engine/model/arch/layer_kinds.h"
#include "engine/model/arch/tensor_names.h"

namespace headwater::arch {
namespace {

constexpr std::string_view kWindowKeys[] = {"sliding_window", "use_sliding_window", "layer_types"};

void finish_config(const JsonObject& config, ArchReading& reading) {
  if (!config.boolean_or("use_sliding_window", false) || !config.has("sliding_window")) return;
  const int64_t first = config.integer_or("max_window_layers", 28);
  set_windows(
      reading.spec,
      config.integer("sliding_window", kWindow),
      sliding_layers(config, reading.spec, [first](int32_t layer) { return layer >= first; }));
}

}  // namespace

constinit const Arch kQwen2 = {
    .name = "qwen2",
    .gguf_name = "qwen2",
    .hf_name = "qwen2",
    .hf_weights = {.qkv_bias = Presence::kRequired},
    .config_keys = kWindowKeys,
    .finish_config = finish_config,
    .gguf_tensors = kGgufTensors,
    .hf_tensors = kHfTensors,
};

constinit const Arch kQwen3 = {
    .name = "qwen3",
    .gguf_name = "qwen3",
    .hf_name = "qwen3",
    .qk_norm = QkNorm::kHead,
    .defaults = {.head_dim = 128},
    .config_keys = kWindowKeys,
    .finish_config = finish_config,
    .gguf_tensors = kGgufTensors,
    .hf_tensors = kHfTensors,
};

}  // namespace headwater::arch
