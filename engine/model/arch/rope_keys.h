// The rotary embedding of one kind of layer, from either container into a ModelSpec.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/io/json_object.h"
#include "engine/model/arch/gguf_keys.h"
#include "engine/model/model_spec.h"
#include "engine/model/rope_scaling.h"

namespace headwater::arch {

struct RopeReading {
  int32_t rotary_dim = 0;
  double base = 10000.0;
  RopeScaling scaling = {};
  std::vector<float> divisors = {};  // [rotary_dim / 2] or empty
  // longrope: the divisors for sequences of more than long_after tokens; empty: it is not asked for
  std::vector<float> long_divisors = {};
  int32_t long_after = 0;
};

// `kind` chooses where config.json has one set of parameters per kind of layer: "full_attention".
RopeReading config_rope(const JsonObject& config,
                        std::string_view kind,
                        double default_base,
                        int32_t head_dim,
                        int32_t max_positions,
                        bool partial);
RopeReading gguf_rope(const GgufKeys& keys, int32_t head_dim, int32_t max_positions);

// Appends to spec.ropes (and long_ropes); returns the index.
int32_t add_rope(ModelSpec& spec, RopePairing pairing, const RopeReading& reading);

}  // namespace headwater::arch
