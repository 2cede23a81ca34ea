// bench_quality: what a compressed cache costs in answers: the requests of `headwater bench
// --quality`, each sent in three ways (quality_report.h), and what came of them.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "server/cli/bench_load.h"
#include "server/cli/bench_prompts.h"
#include "server/cli/http_client.h"
#include "server/cli/quality_report.h"

namespace headwater::cli {

struct QualityConfig {
  bool quality = false;
  std::string lengths = "2048";
  std::string tasks;        // "" = all
  int64_t num_prompts = 4;  // per task and length
  std::string text;         // file; "" = generated
};

struct QualityResult {
  std::vector<QualitySection> sections;
  std::vector<AnswerRecord> answers;
};

// What --help says about the figures.
std::string quality_help();

// Throws ConfigError.
void check_quality(const QualityConfig& config);

// Runs everything; concurrency 0 = all at once. Throws ConfigError, and std::runtime_error if the
// server has no attention policies or a request fails.
QualityResult run_quality(boost::asio::io_context& io,
                          HttpClient& client,
                          Caller& caller,
                          const QualityConfig& config,
                          const std::string& model,
                          int64_t concurrency,
                          uint64_t seed,
                          const std::function<void(const BenchProgress&)>& progress);

}  // namespace headwater::cli
