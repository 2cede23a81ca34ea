#include "server/cli/bench_load.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cmath>
#include <deque>
#include <nlohmann/json.hpp>
#include <random>

namespace headwater::cli {
namespace {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

std::string text_of(const Json& choice) {
  const Json& holder = choice.contains("delta") ? choice["delta"] : choice;
  const char* key = choice.contains("delta") ? "content" : "text";
  if (!holder.is_object()) return "";
  const auto found = holder.find(key);
  return found != holder.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string error_of(const Json& error) {
  const auto message = error.is_object() ? error.find("message") : error.end();
  return message != error.end() && message->is_string() ? message->get<std::string>()
                                                        : error.dump();
}

class LoadRun {
 public:
  LoadRun(asio::io_context& io,
          HttpClient& client,
          const std::string& target,
          const std::vector<std::string>& bodies,
          const LoadShape& shape,
          const std::function<void(const BenchProgress&)>& progress)
      : io_(io),
        client_(client),
        target_(target),
        bodies_(bodies),
        shape_(shape),
        on_progress_(progress),
        records_(bodies.size()) {
    progress_.total = static_cast<int64_t>(bodies.size());
  }

  LoadResult run(const std::vector<double>& arrivals) {
    begin_ = Clock::now();
    asio::co_spawn(io_, arrive(arrivals), asio::detached);
    io_.restart();
    io_.run();
    return {std::move(records_), now()};
  }

 private:
  struct Waiting {
    size_t idx;
    double since_s;
  };

  double now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

  asio::awaitable<void> arrive(const std::vector<double>& arrivals) {
    asio::steady_timer timer(io_);
    for (size_t i = 0; i < bodies_.size(); ++i) {
      timer.expires_at(begin_ + std::chrono::duration_cast<Clock::duration>(
                                    std::chrono::duration<double>(arrivals[i])));
      co_await timer.async_wait(asio::use_awaitable);
      waiting_.push_back({i, now()});
      pump();
    }
  }

  void pump() {
    while (!waiting_.empty() &&
           (shape_.max_concurrency == 0 || progress_.running < shape_.max_concurrency)) {
      const Waiting next = waiting_.front();
      waiting_.pop_front();
      ++progress_.running;
      asio::co_spawn(io_, serve_one(next), asio::detached);
    }
  }

  asio::awaitable<void> serve_one(Waiting request) {
    RequestRecord& record = records_[request.idx];
    record.start_s = now();
    record.queue_s = record.start_s - request.since_s;
    bool done = false;
    try {
      const std::function<void(std::string_view)> on_data = [&](std::string_view payload) {
        done = take_event(payload, now(), record) || done;
        ++progress_.chunks;
      };
      const HttpReply reply = co_await client_.stream(target_, bodies_[request.idx], on_data);
      if (reply.status != 200) {
        record.error = "HTTP " + std::to_string(reply.status) + ": " + reply.body.substr(0, 300);
      } else if (!done && record.error.empty()) {
        record.error = "the stream ended before [DONE]";
      }
    } catch (const boost::system::system_error& e) {
      record.error = e.code().message();
    }
    record.success = record.error.empty() && record.ttft_s > 0;
    if (!record.success && record.error.empty()) record.error = "no chunk with choices came";
    ++progress_.done;
    --progress_.running;
    progress_.elapsed_s = now();
    on_progress_(progress_);
    pump();
  }

  asio::io_context& io_;  // not owned, as are the next four
  HttpClient& client_;
  const std::string& target_;
  const std::vector<std::string>& bodies_;
  const LoadShape& shape_;
  const std::function<void(const BenchProgress&)>& on_progress_;
  Clock::time_point begin_;
  std::deque<Waiting> waiting_;
  BenchProgress progress_;
  std::vector<RequestRecord> records_;
};

}  // namespace

std::vector<double> arrival_times(size_t count, double rate, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<double> times;
  double at = 0;
  for (size_t i = 0; i < count; ++i) {
    times.push_back(at);
    if (!std::isfinite(rate)) continue;
    const double uniform = static_cast<double>(random() >> 11) * 0x1p-53;  // [0, 1)
    at += -std::log1p(-uniform) / rate;
  }
  return times;
}

bool take_event(std::string_view payload, double now_s, RequestRecord& record) {
  if (payload == "[DONE]") return true;
  const Json event = Json::parse(payload, nullptr, false);
  if (!event.is_object()) {
    record.error = "an event is not a JSON object: " + std::string(payload.substr(0, 100));
    return false;
  }
  if (const auto error = event.find("error"); error != event.end()) {
    record.error = error_of(*error);
    return false;
  }
  const auto choices = event.find("choices");
  if (choices != event.end() && choices->is_array() && !choices->empty()) {
    const double since_start = now_s - record.start_s;
    if (record.ttft_s == 0) {
      record.ttft_s = since_start;
    } else {
      record.itl_s.push_back(since_start - record.latency_s);
    }
    record.latency_s = since_start;
    record.text += text_of(choices->front());
  }
  if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
    record.prompt_tokens = usage->value("prompt_tokens", int64_t{0});
    record.output_tokens = usage->value("completion_tokens", int64_t{0});
  }
  return false;
}

LoadResult run_load(asio::io_context& io,
                    HttpClient& client,
                    const std::string& target,
                    const std::vector<std::string>& bodies,
                    const LoadShape& shape,
                    uint64_t seed,
                    const std::function<void(const BenchProgress&)>& progress) {
  return LoadRun(io, client, target, bodies, shape, progress)
      .run(arrival_times(bodies.size(), shape.request_rate, seed));
}

}  // namespace headwater::cli
