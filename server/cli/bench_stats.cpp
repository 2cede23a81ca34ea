#include "server/cli/bench_stats.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>
#include <utility>

#include "kernels/base/status.h"

namespace headwater::cli {
namespace {

constexpr int kTableWidth = 50;

// sorted, not empty; p in percent.
double percentile(const std::vector<double>& sorted, double p) {
  const double rank = p / 100.0 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (rank - std::floor(rank)) * (sorted[above] - sorted[below]);
}

std::optional<double> parse_double(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',' || c == ' ') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  std::erase(parts, "");
  return parts;
}

double tpot_of(const RequestRecord& r) {
  if (r.output_tokens <= 1) return 0;
  return (r.latency_s - r.ttft_s) / static_cast<double>(r.output_tokens - 1);
}

bool is_good(const RequestRecord& r, const Goodput& bound) {
  const auto keeps = [](const std::optional<double>& bound_ms, double seconds) {
    return !bound_ms || seconds * 1e3 <= *bound_ms;
  };
  return keeps(bound.ttft_ms, r.ttft_s) && keeps(bound.tpot_ms, tpot_of(r)) &&
         keeps(bound.e2el_ms, r.latency_s);
}

// Chunks that arrived in the busiest second, counted from the first request's start.
double busiest_second(const std::vector<const RequestRecord*>& done) {
  double begin = done.front()->start_s;
  double end = begin;
  for (const RequestRecord* r : done) {
    begin = std::min(begin, r->start_s);
    end = std::max(end, r->start_s + r->latency_s);
  }
  std::vector<double> chunks(static_cast<size_t>(std::ceil(end - begin)) + 1, 0.0);
  for (const RequestRecord* r : done) {
    double at = r->start_s + r->ttft_s - begin;
    const auto count = [&] { ++chunks[std::min(static_cast<size_t>(at), chunks.size() - 1)]; };
    count();
    for (const double gap : r->itl_s) {
      at += gap;
      count();
    }
  }
  return *std::max_element(chunks.begin(), chunks.end());
}

// Half-open intervals: one that ends when another starts does not overlap it.
int64_t peak_overlap(const std::vector<const RequestRecord*>& done) {
  std::vector<std::pair<double, int>> events;
  for (const RequestRecord* r : done) {
    events.emplace_back(r->start_s, 1);
    events.emplace_back(r->start_s + r->latency_s, -1);
  }
  std::sort(events.begin(), events.end());
  int64_t now = 0;
  int64_t peak = 0;
  for (const auto& [time, delta] : events) peak = std::max(peak, now += delta);
  return peak;
}

std::string centered(const std::string& title, char fill) {
  const int left = (kTableWidth - static_cast<int>(title.size())) / 2;
  const int right = kTableWidth - static_cast<int>(title.size()) - left;
  return std::string(static_cast<size_t>(left), fill) + title +
         std::string(static_cast<size_t>(right), fill) + "\n";
}

std::string row(const std::string& label, int64_t value) {
  char line[128];
  std::snprintf(line, sizeof line, "%-40s %-10lld\n", label.c_str(), static_cast<long long>(value));
  return line;
}

std::string row(const std::string& label, double value) {
  char line[128];
  std::snprintf(line, sizeof line, "%-40s %-10.2f\n", label.c_str(), value);
  return line;
}

// "99", "99.9"
std::string percentile_name(double p) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", p);
  return text;
}

std::string spread_rows(const std::string& name,
                        const std::string& title,
                        const Spread& spread,
                        const std::vector<double>& percentiles) {
  std::string out = centered(title, '-');
  out += row("Mean " + name + " (ms):", spread.mean_ms);
  out += row("Median " + name + " (ms):", spread.median_ms);
  for (size_t i = 0; i < percentiles.size(); ++i) {
    out += row("P" + percentile_name(percentiles[i]) + " " + name + " (ms):",
               spread.percentiles_ms[i]);
  }
  return out;
}

void add_spread(nlohmann::ordered_json& json,
                const std::string& name,
                const Spread& spread,
                const std::vector<double>& percentiles) {
  json["mean_" + name + "_ms"] = spread.mean_ms;
  json["median_" + name + "_ms"] = spread.median_ms;
  json["std_" + name + "_ms"] = spread.std_ms;
  for (size_t i = 0; i < percentiles.size(); ++i) {
    json["p" + percentile_name(percentiles[i]) + "_" + name + "_ms"] = spread.percentiles_ms[i];
  }
}

}  // namespace

Spread spread_of(std::vector<double> seconds, const std::vector<double>& percentiles) {
  if (seconds.empty()) seconds.push_back(0);
  std::sort(seconds.begin(), seconds.end());
  const auto count = static_cast<double>(seconds.size());
  const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / count;
  double squares = 0;
  for (const double s : seconds) squares += (s - mean) * (s - mean);
  Spread spread;
  spread.mean_ms = mean * 1e3;
  spread.median_ms = percentile(seconds, 50) * 1e3;
  spread.std_ms = std::sqrt(squares / count) * 1e3;
  for (const double p : percentiles) spread.percentiles_ms.push_back(percentile(seconds, p) * 1e3);
  return spread;
}

Goodput parse_goodput(const std::string& text) {
  Goodput goodput;
  for (const std::string& part : split(text)) {
    const size_t colon = part.find(':');
    const std::string name = part.substr(0, colon);
    const auto value =
        colon == std::string::npos ? std::nullopt : parse_double(part.substr(colon + 1));
    std::optional<double>* field = name == "ttft"   ? &goodput.ttft_ms
                                   : name == "tpot" ? &goodput.tpot_ms
                                   : name == "e2el" ? &goodput.e2el_ms
                                                    : nullptr;
    if (field == nullptr || !value || !(*value >= 0)) {
      throw ConfigError(
          "--goodput: must be bounds in milliseconds such as ttft:200,tpot:50,e2el:4000, got \"" +
          part + "\"");
    }
    *field = *value;
  }
  return goodput;
}

std::vector<double> parse_percentiles(const std::string& text) {
  std::vector<double> percentiles;
  for (const std::string& part : split(text)) {
    const auto value = parse_double(part);
    if (!value || !(*value >= 0 && *value <= 100)) {
      throw ConfigError(
          "--metric-percentiles: must be numbers from 0 to 100 such as 50,90,99, got \"" + part +
          "\"");
    }
    percentiles.push_back(*value);
  }
  return percentiles;
}

BenchSummary summarize(const std::vector<RequestRecord>& records,
                       double duration_s,
                       const Goodput& goodput,
                       const std::vector<double>& percentiles) {
  BenchSummary s;
  s.duration_s = duration_s;
  s.percentiles = percentiles;
  std::vector<const RequestRecord*> done;
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t good = 0;
  int64_t chunks = 0;
  for (const RequestRecord& r : records) {
    if (!r.success) {
      ++s.failed;
      continue;
    }
    done.push_back(&r);
    s.total_input_tokens += r.prompt_tokens;
    s.total_output_tokens += r.output_tokens;
    ttft.push_back(r.ttft_s);
    if (r.output_tokens > 1) tpot.push_back(tpot_of(r));
    itl.insert(itl.end(), r.itl_s.begin(), r.itl_s.end());
    e2el.push_back(r.latency_s);
    chunks += 1 + static_cast<int64_t>(r.itl_s.size());
    good += is_good(r, goodput) ? 1 : 0;
  }
  s.completed = static_cast<int64_t>(done.size());
  s.request_throughput = static_cast<double>(s.completed) / duration_s;
  s.output_throughput = static_cast<double>(s.total_output_tokens) / duration_s;
  s.total_token_throughput =
      static_cast<double>(s.total_input_tokens + s.total_output_tokens) / duration_s;
  if (goodput.any()) s.request_goodput = static_cast<double>(good) / duration_s;
  if (!done.empty()) {
    s.max_output_tokens_per_s = busiest_second(done);
    s.max_concurrent_requests = peak_overlap(done);
    s.tokens_per_chunk = static_cast<double>(s.total_output_tokens) / static_cast<double>(chunks);
  }
  s.ttft = spread_of(std::move(ttft), percentiles);
  s.tpot = spread_of(std::move(tpot), percentiles);
  s.itl = spread_of(std::move(itl), percentiles);
  s.e2el = spread_of(std::move(e2el), percentiles);
  return s;
}

std::string format_table(const BenchSummary& s, const LoadShape& shape) {
  std::string out = centered(" Serving Benchmark Result ", '=');
  out += row("Successful requests:", s.completed);
  out += row("Failed requests:", s.failed);
  if (shape.max_concurrency > 0) out += row("Maximum request concurrency:", shape.max_concurrency);
  if (std::isfinite(shape.request_rate)) {
    out += row("Request rate configured (RPS):", shape.request_rate);
  }
  out += row("Benchmark duration (s):", s.duration_s);
  out += row("Total input tokens:", s.total_input_tokens);
  out += row("Total generated tokens:", s.total_output_tokens);
  out += row("Request throughput (req/s):", s.request_throughput);
  if (s.request_goodput) out += row("Request goodput (req/s):", *s.request_goodput);
  out += row("Output token throughput (tok/s):", s.output_throughput);
  out += row("Peak output token throughput (tok/s):", s.max_output_tokens_per_s);
  out += row("Peak concurrent requests:", static_cast<double>(s.max_concurrent_requests));
  out += row("Total token throughput (tok/s):", s.total_token_throughput);
  out += spread_rows("TTFT", "Time to First Token", s.ttft, s.percentiles);
  out += spread_rows("TPOT", "Time per Output Token (excl. 1st token)", s.tpot, s.percentiles);
  out += spread_rows("ITL", "Inter-token Latency", s.itl, s.percentiles);
  out += spread_rows("E2EL", "End-to-end Latency", s.e2el, s.percentiles);
  return out + std::string(kTableWidth, '=') + "\n";
}

nlohmann::ordered_json to_json(const BenchSummary& s,
                               const LoadShape& shape,
                               const std::vector<RequestRecord>& records) {
  nlohmann::ordered_json json;
  json["num_prompts"] = records.size();
  if (std::isfinite(shape.request_rate)) {
    json["request_rate"] = shape.request_rate;
  } else {
    json["request_rate"] = "inf";
  }
  json["burstiness"] = 1.0;
  json["max_concurrency"] = nullptr;
  if (shape.max_concurrency > 0) json["max_concurrency"] = shape.max_concurrency;
  json["duration"] = s.duration_s;
  json["completed"] = s.completed;
  json["failed"] = s.failed;
  json["total_input_tokens"] = s.total_input_tokens;
  json["total_output_tokens"] = s.total_output_tokens;
  json["request_throughput"] = s.request_throughput;
  json["request_goodput"] = nullptr;
  if (s.request_goodput) json["request_goodput"] = *s.request_goodput;
  json["output_throughput"] = s.output_throughput;
  json["total_token_throughput"] = s.total_token_throughput;
  json["max_output_tokens_per_s"] = s.max_output_tokens_per_s;
  json["max_concurrent_requests"] = s.max_concurrent_requests;
  json["tokens_per_chunk"] = s.tokens_per_chunk;
  add_spread(json, "ttft", s.ttft, s.percentiles);
  add_spread(json, "tpot", s.tpot, s.percentiles);
  add_spread(json, "itl", s.itl, s.percentiles);
  add_spread(json, "e2el", s.e2el, s.percentiles);
  for (const char* list : {"input_lens",
                           "output_lens",
                           "ttfts",
                           "itls",
                           "latencies",
                           "start_times",
                           "queue_times",
                           "generated_texts",
                           "errors"}) {
    json[list] = nlohmann::ordered_json::array();
  }
  for (const RequestRecord& r : records) {
    json["input_lens"].push_back(r.prompt_tokens);
    json["output_lens"].push_back(r.success ? r.output_tokens : 0);
    json["ttfts"].push_back(r.ttft_s);
    json["itls"].push_back(r.itl_s);
    json["latencies"].push_back(r.latency_s);
    json["start_times"].push_back(r.start_s);
    json["queue_times"].push_back(r.queue_s);
    json["generated_texts"].push_back(r.text);
    json["errors"].push_back(r.error);
  }
  return json;
}

}  // namespace headwater::cli
