// bench_stats: what happened to each request -> the figures, table and JSON of `headwater bench`.
// Definitions, labels and JSON keys are those of vLLM's serving benchmark, so that its tools can
// compare. Pure functions.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace headwater::cli {

// One request as the client saw it; seconds on one clock.
struct RequestRecord {
  bool success = false;
  std::string error;
  double start_s = 0;         // sent
  double ttft_s = 0;          // start -> first chunk with choices
  std::vector<double> itl_s;  // gaps between successive chunks with choices
  double latency_s = 0;       // start -> last chunk with choices
  double queue_s = 0;         // held back by the client's own concurrency bound
  int64_t prompt_tokens = 0;  // from usage, as is the next
  int64_t output_tokens = 0;
  std::string text;
};

// Mean, median, population deviation and percentiles (linear between ranks) in milliseconds.
struct Spread {
  double mean_ms = 0;
  double median_ms = 0;
  double std_ms = 0;
  std::vector<double> percentiles_ms;  // as asked for
};

Spread spread_of(std::vector<double> seconds, const std::vector<double>& percentiles);

// Bounds in milliseconds that a good request keeps.
struct Goodput {
  std::optional<double> ttft_ms, tpot_ms, e2el_ms;
  bool any() const { return ttft_ms || tpot_ms || e2el_ms; }
};

// "ttft:200,tpot:50,e2el:4000", parts separated by commas or blanks. Throws ConfigError.
Goodput parse_goodput(const std::string& text);
// "50,90,99". Throws ConfigError.
std::vector<double> parse_percentiles(const std::string& text);

struct BenchSummary {
  double duration_s = 0;
  int64_t completed = 0, failed = 0;
  int64_t total_input_tokens = 0, total_output_tokens = 0;
  double request_throughput = 0, output_throughput = 0, total_token_throughput = 0;
  std::optional<double> request_goodput;
  double max_output_tokens_per_s = 0;  // chunks in the busiest second
  int64_t max_concurrent_requests = 0;
  double tokens_per_chunk = 0;
  std::vector<double> percentiles;
  Spread ttft, tpot, itl, e2el;
};

// tpot = (latency - ttft) / (output tokens - 1), of requests with more than one token; one token
// counts as keeping any tpot bound.
BenchSummary summarize(const std::vector<RequestRecord>& records,
                       double duration_s,
                       const Goodput& goodput,
                       const std::vector<double>& percentiles);

// How the load was offered; part of table and JSON.
struct LoadShape {
  double request_rate = 0;      // infinity: all at once
  int64_t max_concurrency = 0;  // 0 = unbounded
};

std::string format_table(const BenchSummary& summary, const LoadShape& shape);
nlohmann::ordered_json to_json(const BenchSummary& summary,
                               const LoadShape& shape,
                               const std::vector<RequestRecord>& records);

}  // namespace headwater::cli
