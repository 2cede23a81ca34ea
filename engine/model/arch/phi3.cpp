// Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: fused projections, LongRoPE, partial rotation.
#include "engine/model/arch/arch_checks.h"
#include "engine/model/arch/archs.h"
#include "engine/model/arch/layer_kinds.h"
#include "engine/model/arch/tensor_names.h"

namespace headwater::arch {
namespace {

constexpr std::string_view kConfigKeys[] = {"sliding_window", "partial_rotary_factor"};
constexpr std::string_view kGgufKeys[] = {"attention.sliding_window"};

void finish_config(const JsonObject& config, ArchReading& reading) {
  if (config.has("sliding_window"))
    set_windows(reading.spec, config.integer("sliding_window", {1, kWindow.max}), [](int32_t) {
      return true;
    });
}

constexpr TensorNames fused(TensorNames names, std::string_view qkv, std::string_view gate_up) {
  names.qkv = qkv;
  names.gate_up = gate_up;
  return names;
}

}  // namespace

constinit const Arch kPhi3 = {
    .name = "phi3",
    .gguf_name = "phi3",
    .hf_name = "phi3",
    .config_keys = kConfigKeys,
    .gguf_keys = kGgufKeys,
    .finish_config = finish_config,
    .finish_gguf = window_on_every_layer,
    .gguf_tensors = fused(kGgufTensors, "blk.{}.attn_qkv", "blk.{}.ffn_up"),
    .hf_tensors =
        fused(kHfTensors, "model.layers.{}.self_attn.qkv_proj", "model.layers.{}.mlp.gate_up_proj"),
};

}  // namespace headwater::arch
