// bench_load: sends ready-made requests as the load shape says and records what came back. One
// thread runs everything.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "server/cli/bench_stats.h"
#include "server/cli/http_client.h"

namespace headwater::cli {

struct BenchProgress {
  int64_t done = 0;
  int64_t running = 0;
  int64_t total = 0;
  int64_t chunks = 0;
  double elapsed_s = 0;
};

struct LoadResult {
  std::vector<RequestRecord> records;  // in the order of the bodies
  double duration_s = 0;
};

// Seconds after the start at which each request arrives: a Poisson process of rate per second, the
// same for the same seed; all 0 if rate is infinite.
std::vector<double> arrival_times(size_t count, double rate, uint64_t seed);

// POSTs every body to target (streaming endpoints of OpenAI's API). Open loop: arrivals do not wait
// for answers, unless shape.max_concurrency holds them back. Failures are in the records.
LoadResult run_load(boost::asio::io_context& io,
                    HttpClient& client,
                    const std::string& target,
                    const std::vector<std::string>& bodies,
                    const LoadShape& shape,
                    uint64_t seed,
                    const std::function<void(const BenchProgress&)>& progress);

// Takes one payload of the event stream that came at now_s into the record. True: "[DONE]".
bool take_event(std::string_view payload, double now_s, RequestRecord& record);

}  // namespace headwater::cli
