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

// Over what q and k are normalised before RoPE: not at all, each head by itself, or all heads of a
// row as one vector.
enum class QkNorm : uint8_t { kNone, kHead, kRow };

struct LayerSpec {
  HeadShape heads;
  int32_t ffn_dim = 0;
  int32_t rope_idx = 0;          // into ModelSpec::ropes; -1 = no rotary embedding in this layer
  int32_t window = 0;            // > 0: a row sees the latest `window` positions, itself included
  float attention_scale = 0.0f;  // 0 = 1/sqrt(head_dim)
};

// One layer, with branch = attention, then FFN:   y = branch(before(x)),   x += scale * after(y)
// where before and after are RMS norms that an architecture has or has not.
struct ModelSpec {
  std::string architecture;  // general.architecture or model_type: "llama"
  int32_t vocab_size = 0;    // rows of the embedding
  int32_t hidden_dim = 0;
  int32_t max_positions = 0;  // trained context
  float rms_eps = 1e-5f;
  bool norm_before = true;  // each branch
  bool norm_after = false;
  QkNorm qk_norm = QkNorm::kNone;
  Gate gate = Gate::kSilu;  // of gate(x W_gate) * (x W_up)
  float embedding_scale = 1.0f;
  float residual_scale = 1.0f;
  float logit_scale = 1.0f;     // logits = logit_softcap by (logit_scale * h W_output)
  float attention_softcap = 0;  // > 0: bounds the logits of attention
  float logit_softcap = 0;      // > 0: bounds those of the vocabulary
  bool tied_embedding = false;  // output = token embedding
  std::vector<RopeSpec> ropes;  // distinct ones
  // Where the frequencies depend on the length: a sequence of more than long_after tokens takes
  // long_ropes, [ropes], in place of ropes, for all of its positions. Empty: they do not.
  std::vector<RopeSpec> long_ropes;
  int32_t long_after = 0;
  std::vector<LayerSpec> layers;
};

// Weights of one layer as views into the mapped files; what a model lacks has data == nullptr.
struct LayerWeights {
  WeightView attn_norm, ffn_norm;            // F32 [1, hidden], if norm_before
  WeightView attn_post_norm, ffn_post_norm;  // likewise, if norm_after
  WeightView q_norm, k_norm;                 // F32 [1, head_dim or a row's heads], by qk_norm
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
