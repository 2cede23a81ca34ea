// The architectures that can be loaded: one row each. A new one is one file beside this one (keys
// to ModelSpec, tensor names, defaults), one row in arch_table.cpp and a golden test.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "engine/io/gguf.h"
#include "engine/io/json_object.h"
#include "engine/model/model_spec.h"
#include "engine/model/tensor_set.h"
#include "engine/model/weight_map.h"

namespace headwater {

struct ArchReading {
  ModelSpec spec;
  Presence attention_bias = Presence::kAbsent;
};

struct Arch {
  std::string_view gguf_name;  // general.architecture
  std::string_view hf_name;    // model_type of config.json
  // Both throw LoadError. Sizes are bounded before anything is allocated by them.
  ArchReading (*from_gguf)(const GgufFile& metadata, const TensorSet& tensors);
  ArchReading (*from_config)(const JsonObject& config);
  TensorNames gguf_tensors;
  TensorNames hf_tensors;
};

std::span<const Arch> arch_table();
// Throw LoadError when the table has no such row: the message lists the known names.
const Arch& find_gguf_arch(std::string_view name, const std::string& file);
const Arch& find_hf_arch(std::string_view name, const std::string& file);

}  // namespace headwater
