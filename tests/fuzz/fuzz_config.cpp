// Any bytes as config.json, read as every architecture: what is accepted is bounded and whole.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "engine/io/json_object.h"
#include "engine/model/arch/arch_table.h"
#include "kernels/base/check.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

void check_whole(const ModelSpec& spec) {
  HW_CHECK(spec.vocab_size > 0 && spec.hidden_dim > 0 && spec.max_positions > 0, "sizes");
  HW_CHECK(!spec.layers.empty() && spec.layers.size() <= 1024, "layers", spec.layers.size());
  HW_CHECK(spec.long_ropes.empty() || spec.long_ropes.size() == spec.ropes.size(), "ropes");
  for (const RopeSpec& rope : spec.ropes)
    HW_CHECK(static_cast<size_t>(rope.rotary_dim) == 2 * rope.inv_freq.size(), "a rope's pairs");
  for (const LayerSpec& layer : spec.layers) {
    HW_CHECK(layer.heads.num_heads % layer.heads.num_kv_heads == 0, "heads");
    HW_CHECK(layer.rope_idx >= -1 && layer.rope_idx < static_cast<int32_t>(spec.ropes.size()),
             "a layer's rope");
    HW_CHECK(layer.window >= 0 && layer.window < spec.max_positions, "a layer's window");
  }
}

}  // namespace
}  // namespace headwater

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace headwater;  // NOLINT: entry point
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::optional<JsonObject> config;
  try {
    config.emplace(JsonObject::parse(text, "config.json"));
  } catch (const LoadError&) {
    return 0;
  }
  for (const Arch* arch : arch_table()) {
    try {
      check_whole(read_config_arch(*arch, *config).spec);
    } catch (const LoadError&) {
    }
  }
  return 0;
}
