// Which layers see a window only.
#pragma once

#include <functional>
#include <vector>

#include "engine/model/arch/arch_table.h"

namespace headwater::arch {

using LayerRule = std::function<bool(int32_t layer)>;

// By config.json's "layer_types", or by the rule where it has none.
LayerRule sliding_layers(const JsonObject& config, const ModelSpec& spec, const LayerRule& rule);
// By GGUF's "attention.sliding_window_pattern", a period (the last of each sees everything) or one
// flag per layer, or by the period given.
LayerRule sliding_layers(const GgufKeys& keys, const ModelSpec& spec, int32_t period);

// GGUF's "attention.sliding_window", on all layers.
void window_on_every_layer(const GgufKeys& keys, ArchReading& reading);

}  // namespace headwater::arch
