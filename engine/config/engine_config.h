// EngineConfig: what the engine is told. Plain data; names are vLLM's where they mean the same.
// server/config turns YAML, environment and flags into it (describe() below drives all of them).
#pragma once

#include <cstdint>
#include <string>

namespace headwater {

struct EngineConfig {
  std::string model;                     // GGUF file, or Hugging Face folder
  std::string served_model_name;         // "" = file or folder name
  std::string device = "auto";           // auto | cuda | cpu | ref
  bool deterministic = false;            // a GPU's bits do not depend on the batch either
  int32_t threads = 0;                   // 0 = one per usable CPU
  int32_t max_model_len = 0;             // 0 = the model's, as far as the KV pool reaches
  int32_t max_num_seqs = 64;             // running at once
  int32_t max_num_batched_tokens = 512;  // token budget of one step
  double max_itl_stretch = 2.0;          // prefill may stretch the gap between tokens that much
  int32_t max_queue = 256;               // waiting requests before 429
  int64_t kv_cache_bytes = 0;            // 0 = for max_num_seqs, or what memory allows
  double gpu_memory_utilization = 0.9;   // of the GPU's memory: weights, scratch and KV pool
  std::string kv_cache_dtype = "auto";   // auto | f32 | f16 | bf16
  int32_t block_size = 16;               // tokens of one page of one head
  bool enable_prefix_caching = true;
  std::string attention = "dense";  // policy (engine/attention/policy_table.cpp)
  std::string head_table;           // which heads keep everything: file or folder
  double retrieval_ratio = -1;      // of the heads keep everything, by the table's ranking
  double duo_sparsity = 0.5;        // of the heads do not, by published DuoAttention gates
  int32_t window_sinks = -1;        // of compressed heads; -1 = the policy's, here and below
  int32_t window_recent = -1;
  double window_growth = -1;
  int32_t window_block = -1;
  int32_t s2_stride = 8;
  int32_t s2_dense_heads = 0;         // last KV heads of each layer
  std::string prefill_mode = "auto";  // faithful | streaming | auto: the policy's
  uint64_t seed = 0;                  // 0 = random
  bool allow_dense_requests = true;   // attention.policy "dense" of a request
  int32_t max_kv_budget = 0;          // largest attention.kv_budget of a request; 0 = any
  bool check_invariants = false;      // conservation after every step
  std::string chat_template;          // file; "" = the model's own
};

// Calls visit(name, field, help) for every field: the one list behind YAML keys, environment
// variables, flags, --help and /v1/config. name is kebab-case ("max-model-len").
template <typename Config, typename Visitor>
void describe_engine(Config& c, Visitor&& visit) {
  visit("model", c.model, "GGUF file, or folder with config.json and safetensors");
  visit("served-model-name", c.served_model_name, "name clients use; default: the file's name");
  visit("device",
        c.device,
        "auto (a GPU if there is one, else the CPU), cuda, cpu or ref (slow fp32 oracle)");
  visit("deterministic",
        c.deterministic,
        "a request's bits do not depend on its neighbours on a GPU either (slower; a CPU's never "
        "do)");
  visit("threads", c.threads, "CPU threads; 0 = one per CPU that affinity and cgroup allow");
  visit("max-model-len", c.max_model_len, "longest prompt + output in tokens; 0 = the model's");
  visit("max-num-seqs", c.max_num_seqs, "sequences that run at once");
  visit("max-num-batched-tokens",
        c.max_num_batched_tokens,
        "tokens of one step: decodes first, the rest is prefill");
  visit("max-itl-stretch",
        c.max_itl_stretch,
        "while streams decode, prefill chunks keep a step under this many times a decode step");
  visit("max-queue", c.max_queue, "requests that wait before further ones get 429");
  visit("kv-cache-bytes", c.kv_cache_bytes, "size of the KV pool in bytes; 0 = by free memory");
  visit("gpu-memory-utilization",
        c.gpu_memory_utilization,
        "share of the GPU's memory for weights, scratch and KV pool; unused if kv-cache-bytes is "
        "set");
  visit("kv-cache-dtype", c.kv_cache_dtype, "auto, f32, f16 or bf16");
  visit("block-size", c.block_size, "tokens of one KV page (of one head); a multiple of 16");
  visit("enable-prefix-caching", c.enable_prefix_caching, "reuse KV pages of equal prefixes");
  visit(
      "attention",
      c.attention,
      "dense, window, razor, duo, moa, s2, or auto: the shipped table's of this model, else dense");
  visit("head-table",
        c.head_table,
        "which heads keep everything: JSON, DuoAttention folder or TSV, MoA JSON; auto = shipped");
  visit("retrieval-ratio",
        c.retrieval_ratio,
        "share of heads that keep everything, by the table's ranking; -1 = as the table says");
  visit("duo-sparsity",
        c.duo_sparsity,
        "share of heads that do not keep everything, of a published DuoAttention table");
  visit("window-sinks",
        c.window_sinks,
        "compressed heads: first tokens that stay; -1 = the policy's, here and below");
  visit("window-recent", c.window_recent, "compressed heads: latest tokens that stay, at least");
  visit("window-growth", c.window_growth, "compressed heads: share of the context that stays");
  visit("window-block", c.window_block, "compressed heads: tokens that are dropped together");
  visit("s2-stride", c.s2_stride, "S2-Attention: every how-many-th older block a head keeps");
  visit("s2-dense-heads", c.s2_dense_heads, "S2-Attention: last KV heads of a layer that keep all");
  visit("prefill-mode",
        c.prefill_mode,
        "streaming (drop while prefilling), faithful (drop when the prompt ends) or auto");
  visit("allow-dense-requests",
        c.allow_dense_requests,
        "requests may ask for attention.policy dense, which holds every token");
  visit("max-kv-budget",
        c.max_kv_budget,
        "largest attention.kv_budget that a request may ask for; 0 = any");
  visit("seed", c.seed, "seed for requests without one; 0 = random");
  visit("check-invariants", c.check_invariants, "check page conservation after every step (slow)");
  visit("chat-template", c.chat_template, "Jinja file that replaces the model's chat template");
}

}  // namespace headwater
