#include "engine/config/config_check.h"

#include <cstdint>
#include <utility>

#include "engine/config/config_issues.h"

namespace headwater {
namespace {

constexpr int64_t kMaxTokens = 16 << 20;

void share(ConfigIssues& issues, const char* option, double value, bool may_be_unset) {
  if ((value >= 0 && value <= 1) || (may_be_unset && value == -1)) return;
  issues.add(std::string(option) + ": must be between 0 and 1" + (may_be_unset ? ", or -1" : "") +
             ", got " + std::to_string(value));
}

void check_retention(const EngineConfig& c, ConfigIssues& issues) {
  share(issues, "retrieval-ratio", c.retrieval_ratio, true);
  share(issues, "duo-sparsity", c.duo_sparsity, false);
  share(issues, "window-growth", c.window_growth, true);
  issues.range("window-sinks", c.window_sinks, -1, kMaxTokens);
  for (const auto& [option, value] :
       {std::pair("window-recent", c.window_recent), std::pair("window-block", c.window_block)}) {
    issues.range(option, value, -1, kMaxTokens);
    if (value == 0) issues.add(std::string(option) + ": must be positive, or -1, got 0");
  }
  issues.range("s2-stride", c.s2_stride, 1, 1 << 16);
  issues.range("s2-dense-heads", c.s2_dense_heads, 0, 1 << 16);
  issues.range("max-kv-budget", c.max_kv_budget, 0, kMaxTokens);
  issues.one_of("prefill-mode", c.prefill_mode, {"auto", "streaming", "faithful"});
}

}  // namespace

std::vector<std::string> check_engine_config(const EngineConfig& c) {
  ConfigIssues issues;
  if (c.model.empty()) {
    issues.add("model: must name a GGUF file or a folder with config.json and safetensors");
  }
  issues.one_of("device", c.device, {"auto", "cuda", "cpu", "ref"});
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
  if (!(c.gpu_memory_utilization > 0 && c.gpu_memory_utilization <= 1)) {
    issues.add("gpu-memory-utilization: must be above 0 and at most 1, got " +
               std::to_string(c.gpu_memory_utilization));
  }
  issues.one_of("kv-cache-dtype", c.kv_cache_dtype, {"auto", "f32", "f16", "bf16"});
  issues.range("block-size", c.block_size, 16, 1024);
  if (c.block_size % 16 != 0) {
    issues.add("block-size: must be a multiple of 16, got " + std::to_string(c.block_size));
  }
  check_retention(c, issues);
  return issues.take();
}

}  // namespace headwater
