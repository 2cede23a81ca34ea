// ModelSpec: an architecture as data. Made by engine/model/arch/*.cpp from GGUF keys or from
// config.json; past it nothing knows the file format. A difference in dataflow is a field here and
// one branch in model.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "kernels/rope/rope.h"

namespace headwater {

struct LayerSpec {
  HeadShape heads;
  int32_t ffn_dim = 0;
  int32_t rope_idx = 0;          // into ModelSpec::ropes; -1 = no rotary embedding in this layer
  float attention_scale = 0.0f;  // 0 = 1/sqrt(head_dim)
};

struct ModelSpec {
  std::string architecture;  // general.architecture or model_type: "llama"
  int32_t vocab_size = 0;    // rows of the embedding
  int32_t hidden_dim = 0;
  int32_t max_positions = 0;  // trained context
  float rms_eps = 1e-5f;
  float embedding_scale = 1.0f;
  bool tied_embedding = false;  // output = token embedding
  std::vector<RopeSpec> ropes;  // distinct ones
  std::vector<LayerSpec> layers;
};

// Weights of one layer as views into the mapped files; a missing bias has data == nullptr.
struct LayerWeights {
  WeightView attn_norm, ffn_norm;  // F32 [1, hidden]
  WeightView q, k, v, o;
  WeightView q_bias, k_bias, v_bias, o_bias;  // F32 [1, rows] or absent
  WeightView gate, up, down;
};

struct ModelWeights {
  WeightView token_embedding;  // [vocab, hidden]
  WeightView output_norm;      // F32 [1, hidden]
  WeightView output;           // [vocab, hidden]; equals token_embedding if tied
  std::vector<LayerWeights> layers;
};

}  // namespace headwater
