// From tensor names to the roles of ModelWeights, checked against the spec.
#pragma once

#include <span>
#include <string_view>

#include "engine/io/refusals.h"
#include "engine/model/loaded_model.h"
#include "engine/model/tensor_set.h"

namespace headwater {

// Names without ".weight" and ".bias"; "{}" stands for the layer. "" = no tensor of that role.
struct TensorNames {
  std::string_view token_embedding = {}, output_norm = {}, output = {};
  std::string_view attn_norm = {}, q = {}, k = {}, v = {}, o = {};
  std::string_view qkv = {};  // q, k and v as one tensor, in place of the three
  std::string_view q_norm = {}, k_norm = {}, attn_post_norm = {};
  std::string_view ffn_norm = {}, gate = {}, up = {}, down = {};
  std::string_view gate_up = {};  // likewise
  std::string_view ffn_post_norm = {};
  std::span<const std::string_view> ignored =
      {};  // parts of full names that carry no weight of the text
};

enum class Presence : uint8_t { kAbsent, kOptional, kRequired };

// What a container keeps of an architecture, beyond the spec.
struct WeightRules {
  Presence qkv_bias = Presence::kAbsent;
  Presence o_bias = Presence::kAbsent;
  float norm_offset = 0.0f;  // added to every norm as stored
};

// Fills weights, owned, num_parameters, weight_bytes and weight_format from model.spec. Refuses, by
// name: a tensor missing, left over, of an unsupported type or of another shape.
void map_weights(const TensorSet& tensors,
                 const TensorNames& names,
                 const WeightRules& rules,
                 LoadedModel& model,
                 Refusals& refusals);

}  // namespace headwater
