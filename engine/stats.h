// EngineStats: a snapshot for metrics. Taken on any thread under a short lock.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/request.h"

namespace headwater {

// Cumulative histogram in Prometheus' sense: counts[i] = observations <= edges[i]; count has all.
struct Histogram {
  std::vector<double> edges;
  std::vector<uint64_t> counts;
  uint64_t count = 0;
  double sum = 0;

  Histogram() = default;
  explicit Histogram(std::vector<double> bucket_edges)
      : edges(std::move(bucket_edges)), counts(edges.size(), 0) {}
  void observe(double value) {
    for (size_t i = edges.size(); i-- > 0 && value <= edges[i];) ++counts[i];
    ++count;
    sum += value;
  }
};

struct EngineStats {
  // gauges
  int64_t num_running = 0;
  int64_t num_waiting = 0;
  int64_t kv_pages_total = 0, kv_pages_free = 0, kv_pages_held = 0, kv_pages_cached = 0;
  int64_t kv_bytes_total = 0, kv_bytes_free = 0, kv_bytes_held = 0, kv_bytes_cached = 0;
  int64_t kv_bytes_dense_equivalent = 0;  // what the running sequences would hold if dense
  // Tokens that the running sequences hold, summed over heads that keep everything and over those
  // that do not.
  int64_t kv_tokens_full = 0, kv_tokens_compressed = 0;
  int64_t page_tokens = 0;
  std::string kv_format;
  bool prefix_caching = false;
  // counters
  uint64_t prompt_tokens = 0;
  uint64_t generation_tokens = 0;
  uint64_t host_draws = 0;  // tokens for whose logits a device that draws waited
  uint64_t prefix_query_tokens = 0, prefix_hit_tokens = 0;
  uint64_t num_preemptions = 0;
  uint64_t kv_blocks_folded = 0;  // blocks of a head that left its window
  std::array<uint64_t, kFinishReasonNames.size()> finished = {};  // choices, by FinishReason
  uint64_t num_steps = 0;
  // histograms (edges: stats.cpp; names: server/metrics.cpp)
  Histogram time_to_first_token_s, inter_token_latency_s, time_per_output_token_s, e2e_latency_s;
  Histogram queue_time_s, prefill_time_s, decode_time_s, inference_time_s;
  Histogram prompt_tokens_per_request, generation_tokens_per_request, tokens_per_step;
  Histogram max_tokens_per_request, choices_per_request;
};

// All zero, with the bucket edges that vLLM's dashboards compare across replicas. Token counts
// reach to max_model_len.
EngineStats initial_stats(int32_t max_model_len);

}  // namespace headwater
