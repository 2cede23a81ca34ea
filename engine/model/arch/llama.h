// Architecture llama: Llama 1 to 3, SmolLM2, Mistral as GGUF and others of the same dataflow.
#pragma once

#include <string_view>

#include "engine/model/arch/arch_table.h"

namespace headwater::llama {

ArchReading from_gguf(const GgufFile& metadata, const TensorSet& tensors);
ArchReading from_config(const JsonObject& config);

inline constexpr std::string_view kGgufIgnored[] = {"rope_freqs.weight"};  // read by from_gguf
inline constexpr TensorNames kGgufTensors = {
    .token_embedding = "token_embd",
    .output_norm = "output_norm",
    .output = "output",
    .attn_norm = "blk.{}.attn_norm",
    .q = "blk.{}.attn_q",
    .k = "blk.{}.attn_k",
    .v = "blk.{}.attn_v",
    .o = "blk.{}.attn_output",
    .ffn_norm = "blk.{}.ffn_norm",
    .gate = "blk.{}.ffn_gate",
    .up = "blk.{}.ffn_up",
    .down = "blk.{}.ffn_down",
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
    .ffn_norm = "model.layers.{}.post_attention_layernorm",
    .gate = "model.layers.{}.mlp.gate_proj",
    .up = "model.layers.{}.mlp.up_proj",
    .down = "model.layers.{}.mlp.down_proj",
    .ignored = kHfIgnored,
};

}  // namespace headwater::llama
