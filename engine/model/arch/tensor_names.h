// The names that most architectures share; a row copies them and changes what differs.
#pragma once

#include <string_view>

#include "engine/model/weight_map.h"

namespace headwater::arch {

// Read beside the weights: divisors of the rotary frequencies.
inline constexpr std::string_view kGgufIgnored[] = {"rope_freqs.weight", "rope_factors_"};
inline constexpr TensorNames kGgufTensors = {
    .token_embedding = "token_embd",
    .output_norm = "output_norm",
    .output = "output",
    .attn_norm = "blk.{}.attn_norm",
    .q = "blk.{}.attn_q",
    .k = "blk.{}.attn_k",
    .v = "blk.{}.attn_v",
    .o = "blk.{}.attn_output",
    .qkv = "",
    .q_norm = "blk.{}.attn_q_norm",
    .k_norm = "blk.{}.attn_k_norm",
    .attn_post_norm = "blk.{}.post_attention_norm",
    .ffn_norm = "blk.{}.ffn_norm",
    .gate = "blk.{}.ffn_gate",
    .up = "blk.{}.ffn_up",
    .down = "blk.{}.ffn_down",
    .gate_up = "",
    .ffn_post_norm = "blk.{}.post_ffw_norm",
    .ignored = kGgufIgnored,
};

inline constexpr std::string_view kHfIgnored[] = {".rotary_emb.inv_freq"};  // recomputed
inline constexpr TensorNames kHfTensors = {
    .token_embedding = "model.embed_tokens",
    .output_norm = "model.norm",
    .output = "lm_head",
    .attn_norm = "model.layers.{}.input_layernorm",
    .q = "model.layers.{}.self_attn.q_proj",
    .k = "model.layers.{}.self_attn.k_proj",
    .v = "model.layers.{}.self_attn.v_proj",
    .o = "model.layers.{}.self_attn.o_proj",
    .qkv = "",
    .q_norm = "model.layers.{}.self_attn.q_norm",
    .k_norm = "model.layers.{}.self_attn.k_norm",
    .attn_post_norm = "",
    .ffn_norm = "model.layers.{}.post_attention_layernorm",
    .gate = "model.layers.{}.mlp.gate_proj",
    .up = "model.layers.{}.mlp.up_proj",
    .down = "model.layers.{}.mlp.down_proj",
    .gate_up = "",
    .ffn_post_norm = "model.layers.{}.post_feedforward_layernorm",
    .ignored = kHfIgnored,
};

// Where a norm stands behind attention, the name that is otherwise the FFN's is its.
constexpr TensorNames with_post_norms(TensorNames names) {
  names.attn_post_norm = names.ffn_norm;
  names.ffn_norm = "model.layers.{}.pre_feedforward_layernorm";
  return names;
}

}  // namespace headwater::arch
