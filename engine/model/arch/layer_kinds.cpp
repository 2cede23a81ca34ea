#include "engine/model/arch/layer_kinds.h"

#include "engine/io/quote.h"
#include "engine/model/arch/arch_checks.h"
#include "engine/model/arch/gguf_keys.h"

namespace headwater::arch {
namespace {

LayerRule from_flags(std::vector<bool> flags) {
  return [flags = std::move(flags)](int32_t layer) { return flags[static_cast<size_t>(layer)]; };
}

}  // namespace

LayerRule sliding_layers(const JsonObject& config, const ModelSpec& spec, const LayerRule& rule) {
  if (!config.has("layer_types")) return rule;
  const std::vector<std::string> types = config.strings("layer_types");
  check(types.size() == spec.layers.size(),
        config.name(),
        "key \"layer_types\" has " + std::to_string(types.size()) +
            " elements, expected one per layer");
  std::vector<bool> flags;
  for (const std::string& type : types) {
    check(type == "full_attention" || type == "sliding_attention",
          config.name(),
          "key \"layer_types\" asks for " + quote(type) +
              ", which is not supported; expected \"full_attention\" or \"sliding_attention\"");
    flags.push_back(type == "sliding_attention");
  }
  return from_flags(std::move(flags));
}

LayerRule sliding_layers(const GgufKeys& keys, const ModelSpec& spec, int32_t period) {
  constexpr std::string_view kPattern = "attention.sliding_window_pattern";
  const GgufValue* value = keys.file().find(keys.key(kPattern));
  if (value != nullptr && value->is_array) {
    check(
        value->type == GgufType::kBool && value->count == static_cast<int64_t>(spec.layers.size()),
        keys.file_name(),
        "metadata key " + quote(keys.key(kPattern)) +
            " is a list, expected one of true or false per layer");
    std::vector<bool> flags;
    for (const std::byte flag : value->bytes) flags.push_back(flag != std::byte{0});
    return from_flags(std::move(flags));
  }
  const auto every = keys.integer(kPattern, kLayers).value_or(period);
  return [every](int32_t layer) { return (layer + 1) % every != 0; };
}

void window_on_every_layer(const GgufKeys& keys, ArchReading& reading) {
  const int64_t window = keys.integer("attention.sliding_window", kWindow).value_or(0);
  if (window > 0) set_windows(reading.spec, window, [](int32_t) { return true; });
}

}  // namespace headwater::arch
