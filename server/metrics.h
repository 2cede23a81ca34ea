// metrics: Prometheus text. The engine's figures come as a snapshot; HTTP's are counted here.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "engine/stats.h"

namespace headwater {

// Requests by handler, method and status class. Thread-safe.
class HttpMetrics final {
 public:
  // handler: the route's path pattern, or "none".
  void record(const std::string& handler,
              const std::string& method,
              int status,
              double seconds,
              size_t request_bytes);
  std::string text() const;

 private:
  struct Timing {
    Histogram seconds{{.1, .5, 1}};
    uint64_t request_bytes = 0;
  };
  mutable std::mutex mutex_;
  std::map<std::tuple<std::string, std::string, std::string>, uint64_t> requests_;
  std::map<std::pair<std::string, std::string>, Timing> timings_;
};

// vLLM's names (labels model_name and engine="0") and headwater's own. deprecated: also the aliases
// that older dashboards chart.
std::string engine_metrics_text(const EngineStats& stats,
                                const std::string& model_name,
                                bool deprecated);

// process_*: memory, CPU time, descriptors, start time, as far as /proc tells.
std::string process_metrics_text();

}  // namespace headwater
