// bench_prompts: the requests that `headwater bench` sends, ready-made: random token ids or a data
// set.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "server/cli/http_client.h"

namespace headwater::cli {

struct BenchConfig {
  std::string url = "http://127.0.0.1:8000";
  std::string model;
  std::string api_key;
  std::string endpoint = "completions";
  int64_t num_prompts = 100;
  double request_rate = std::numeric_limits<double>::infinity();
  int64_t concurrency = 0;
  int64_t num_warmups = 2;
  std::string dataset;
  int64_t random_input_len = 512;
  int64_t random_output_len = 128;
  bool ignore_eos = false;
  double temperature = 0;
  uint64_t seed = 0;
  std::string goodput;
  std::string metric_percentiles = "99";
  std::string save_result;
  bool json = false;
};

// One call and its reply, waiting.
class Caller {
 public:
  // Neither io nor client is owned.
  Caller(boost::asio::io_context& io, HttpClient& client, const std::string& url)
      : io_(io), client_(client), url_(url) {}

  // body "" = GET. Throws std::runtime_error if nothing answers.
  HttpReply call(const std::string& target, const std::string& body = "");
  // The same for an endpoint that has to answer 200 with a JSON object.
  nlohmann::ordered_json call_json(const std::string& target, const std::string& body = "");

 private:
  boost::asio::io_context& io_;
  HttpClient& client_;
  const std::string url_;
};

// Ids of ordinary text, to draw random prompts from, as the server's /tokenize gives them. Throws
// std::runtime_error.
std::vector<int32_t> ordinary_ids(Caller& caller, const std::string& model);

// config.num_prompts bodies of the endpoint. random_bodies asks the server's /tokenize for ids to
// draw from. Throw ConfigError, std::runtime_error.
std::vector<std::string> random_bodies(const BenchConfig& config,
                                       const std::string& model,
                                       Caller& caller);
std::vector<std::string> dataset_bodies(const BenchConfig& config, const std::string& model);

}  // namespace headwater::cli
