// EngineConfig: what the engine is told. Plain data; names are vLLM's where they mean the same.
// server/config turns YAML, environment and flags into it (describe() below drives all of them).
#pragma once

#include <cstdint>
#include <string>

namespace headwater {

struct EngineConfig {
  std::string model;                     // GGUF file, or Hugging Face folder
  std::string served_model_name;         // "" = file or folder name
  std::string device = "auto";           // auto | cpu | ref
  int32_t threads = 0;                   // 0 = one per usable CPU
  int32_t max_model_len = 0;             // 0 = the model's, as far as the KV pool reaches
  int32_t max_num_seqs = 64;             // running at once
  int32_t max_num_batched_tokens = 512;  // token budget of one step
  double max_itl_stretch = 2.0;          // prefill may stretch the gap between tokens that much
  int32_t max_queue = 256;               // waiting requests before 429
  int64_t kv_cache_bytes = 0;            // 0 = auto: for max_num_seqs or a quarter of memory
  std::string kv_cache_dtype = "auto";   // auto | f32 | f16 | bf16
  int32_t block_size = 16;               // tokens of one page of one head
  bool enable_prefix_caching = true;
  std::string attention = "dense";  // policy
  std::string head_table;           // file, for policies that need one
  int32_t window_sinks = 4;         // window policy without a table
  int32_t window_recent = 1024;
  std::string prefill_mode = "streaming";  // faithful | streaming
  uint64_t seed = 0;                       // 0 = random
  bool check_invariants = false;           // conservation after every step
  std::string chat_template;               // file; "" = the model's own
};

// Calls visit(name, field, help) for every field: the one list behind YAML keys, environment
// variables, flags, --help and /v1/config. name is kebab-case ("max-model-len").
template <typename Config, typename Visitor>
void describe_engine(Config& c, Visitor&& visit) {
  visit("model", c.model, "GGUF file, or folder with config.json and safetensors");
  visit("served-model-name", c.served_model_name, "name clients use; default: the file's name");
  visit("device", c.device, "auto, cpu or ref (slow fp32 oracle)");
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
  visit("kv-cache-dtype", c.kv_cache_dtype, "auto, f32, f16 or bf16");
  visit("block-size", c.block_size, "tokens of one KV page (of one head); a multiple of 16");
  visit("enable-prefix-caching", c.enable_prefix_caching, "reuse KV pages of equal prefixes");
  visit("attention", c.attention, "attention policy: dense or window");
  visit("head-table", c.head_table, "JSON head table: which heads keep everything");
  visit("window-sinks", c.window_sinks, "window policy: first tokens that stay");
  visit("window-recent", c.window_recent, "window policy: latest tokens that stay");
  visit("prefill-mode",
        c.prefill_mode,
        "streaming (windows hold while prefilling) or faithful (drop when the prompt ends)");
  visit("seed", c.seed, "seed for requests without one; 0 = random");
  visit("check-invariants", c.check_invariants, "check page conservation after every step (slow)");
  visit("chat-template", c.chat_template, "Jinja file that replaces the model's chat template");
}

}  // namespace headwater
