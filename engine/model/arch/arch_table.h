// The architectures that can be loaded: one row each. A new one is one file beside this one, which
// defines its rows (names of keys and tensors, what differs from the common decoder), a line in
// arch_table.cpp and a golden case (tests/golden/make_arch_goldens.py).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "engine/io/gguf.h"
#include "engine/io/json_object.h"
#include "engine/model/model_spec.h"
#include "engine/model/tensor_set.h"
#include "engine/model/weight_map.h"

namespace headwater {

class GgufKeys;  // arch/gguf_keys.h

struct ArchReading {
  ModelSpec spec;
  WeightRules weights;
};

// What config.json may leave out, as transformers fills it in. 0: the key is required
// (num_kv_heads: as many as query heads; head_dim: hidden size / query heads).
struct ConfigDefaults {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab_size = 0;
  int32_t max_positions = 0;
  double rms_eps = 0;
  double rope_base = 10000.0;
  bool tied_embedding = false;
};

struct Arch {
  std::string_view name = {};       // in the spec
  std::string_view gguf_name = {};  // general.architecture; "" = such files bear another row's name
  std::string_view hf_name = {};    // model_type of config.json; likewise

  // Where the dataflow differs from the common one (ModelSpec says what they mean).
  bool norm_before = true;
  bool norm_after = false;
  QkNorm qk_norm = QkNorm::kNone;
  Gate gate = Gate::kSilu;
  RopePairing gguf_pairing = RopePairing::kHalves;  // config.json is always about halves

  ConfigDefaults defaults = {};
  WeightRules hf_weights = {};     // before the key "attention_bias"
  std::string_view text_key = {};  // of the object that describes the text model
  std::span<const std::string_view> config_keys = {};  // beyond the common ones: those it reads
  std::span<const std::string_view> gguf_keys = {};    // likewise, without "<architecture>."
  // Read those keys. Null: there are none. They throw LoadError.
  void (*finish_config)(const JsonObject& config, ArchReading& reading) = nullptr;
  void (*finish_gguf)(const GgufKeys& keys, ArchReading& reading) = nullptr;

  TensorNames gguf_tensors = {};
  TensorNames hf_tensors = {};
  // Beginnings of tensor names: from what some files bear to what hf_tensors say.
  std::span<const std::pair<std::string_view, std::string_view>> hf_renames = {};
};

std::span<const Arch* const> arch_table();
// Throw LoadError when the table has no such row: the message lists the known names.
const Arch& find_gguf_arch(std::string_view name, const std::string& file);
const Arch& find_hf_arch(std::string_view name, const std::string& file);

// Both throw LoadError. Sizes are bounded before anything is allocated by them.
ArchReading read_gguf_arch(const Arch& arch, const GgufFile& metadata, const TensorSet& tensors);
ArchReading read_config_arch(const Arch& arch, const JsonObject& config);

}  // namespace headwater
