#include "engine/config/config_check.h"

#include <cstdint>

#include "engine/config/config_issues.h"

namespace headwater {

std::vector<std::string> check_engine_config(const EngineConfig& c) {
  constexpr int64_t kMaxTokens = 16 << 20;
  ConfigIssues issues;
  if (c.model.empty()) {
    issues.add("model: must name a GGUF file or a folder with config.json and safetensors");
  }
  issues.one_of("device", c.device, {"auto", "cpu", "ref"});
  issues.range("threads", c.threads, 0, 1024);
  issues.range("max-model-len", c.max_model_len, 0, kMaxTokens);
  issues.range("max-num-seqs", c.max_num_seqs, 1, 65536);
  issues.range("max-num-batched-tokens", c.max_num_batched_tokens, 1, kMaxTokens);
  if (c.max_num_batched_tokens < c.max_num_seqs) {
    issues.add("max-num-batched-tokens: must be at least max-num-seqs (" +
               std::to_string(c.max_num_seqs) +
               "), so that every running sequence gets a token, got " +
               std::to_string(c.max_num_batched_tokens));
  }
  if (!(c.max_itl_stretch >= 1 && c.max_itl_stretch <= 1000)) {
    issues.add("max-itl-stretch: must be between 1 and 1000, got " +
               std::to_string(c.max_itl_stretch));
  }
  issues.range("max-queue", c.max_queue, 1, 1 << 20);
  issues.range("kv-cache-bytes", c.kv_cache_bytes, 0, int64_t{1} << 46);
  issues.one_of("kv-cache-dtype", c.kv_cache_dtype, {"auto", "f32", "f16", "bf16"});
  issues.range("block-size", c.block_size, 16, 1024);
  if (c.block_size % 16 != 0) {
    issues.add("block-size: must be a multiple of 16, got " + std::to_string(c.block_size));
  }
  issues.range("window-sinks", c.window_sinks, 0, kMaxTokens);
  issues.range("window-recent", c.window_recent, 1, kMaxTokens);
  issues.one_of("prefill-mode", c.prefill_mode, {"streaming", "faithful"});
  return issues.take();
}

}  // namespace headwater
