// From tensor names to the roles of ModelWeights, checked against the spec.
#pragma once

#include <span>
#include <string_view>

#include "engine/io/refusals.h"
#include "engine/model/loaded_model.h"
#include "engine/model/tensor_set.h"

namespace headwater {

// Names without ".weight" and ".bias"; "{}" stands for the layer.
struct TensorNames {
  std::string_view token_embedding, output_norm, output;
  std::string_view attn_norm, q, k, v, o;
  std::string_view ffn_norm, gate, up, down;
  std::span<const std::string_view> ignored;  // ends of full names that carry no weight
};

enum class Presence : uint8_t { kAbsent, kOptional, kRequired };

// Fills weights, owned, num_parameters, weight_bytes and weight_format from model.spec. Refuses, by
// name: a tensor missing, left over, of an unsupported type or of another shape.
void map_weights(const TensorSet& tensors,
                 const TensorNames& names,
                 Presence attention_bias,
                 LoadedModel& model,
                 Refusals& refusals);

}  // namespace headwater
