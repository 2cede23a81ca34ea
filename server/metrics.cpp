#include "server/metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

namespace headwater {
namespace {

using Label = std::pair<std::string_view, std::string>;
using Labels = std::vector<Label>;

std::string number_text(double value) {
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  return error == std::errc() ? std::string(text, end) : "NaN";
}

void append_escaped(std::string& out, std::string_view value) {
  for (const char c : value) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') out += '\\';
    out += c;
  }
}

// Writes one family after the other in the text format 0.0.4.
class TextWriter {
 public:
  explicit TextWriter(Labels common) : common_(std::move(common)) {}

  void family(std::string_view name, std::string_view type, std::string_view help) {
    out_ += "# HELP ";
    (out_ += name) += ' ';
    (out_ += help) += "\n# TYPE ";
    (out_ += name) += ' ';
    (out_ += type) += '\n';
  }
  void sample(std::string_view name, const Labels& labels, double value) {
    out_ += name;
    char separator = '{';
    for (const Labels* list : std::initializer_list<const Labels*>{&common_, &labels}) {
      for (const auto& [key, text] : *list) {
        out_ += separator;
        (out_ += key) += "=\"";
        append_escaped(out_, text);
        out_ += '"';
        separator = ',';
      }
    }
    if (separator == ',') out_ += '}';
    (out_ += ' ') += number_text(value);
    out_ += '\n';
  }
  void gauge(std::string_view name, std::string_view help, double value) {
    family(name, "gauge", help);
    sample(name, {}, value);
  }
  void counter(std::string_view name, std::string_view help, uint64_t value) {
    family(name, "counter", help);
    sample(name, {}, static_cast<double>(value));
  }
  void histogram(std::string_view name, std::string_view help, const Histogram& values) {
    family(name, "histogram", help);
    histogram_samples(name, {}, values);
  }
  void histogram_samples(std::string_view name, const Labels& labels, const Histogram& values) {
    const std::string base(name);
    Labels with_edge = labels;
    with_edge.emplace_back("le", "");
    for (size_t i = 0; i < values.edges.size(); ++i) {
      with_edge.back().second = edge_text(values.edges[i]);
      sample(base + "_bucket", with_edge, static_cast<double>(values.counts[i]));
    }
    with_edge.back().second = "+Inf";
    sample(base + "_bucket", with_edge, static_cast<double>(values.count));
    sample(base + "_sum", labels, values.sum);
    sample(base + "_count", labels, static_cast<double>(values.count));
  }
  std::string take() { return std::move(out_); }

 private:
  // As Python's client prints floats ("1.0", "0.005"), so that label values match across replicas.
  static std::string edge_text(double edge) {
    std::string text = number_text(edge);
    return text.find_first_of(".eE") == std::string::npos ? text + ".0" : text;
  }

  Labels common_;
  std::string out_;
};

double used_share(const EngineStats& stats) {
  if (stats.kv_pages_total == 0) return 0;
  return static_cast<double>(stats.kv_pages_held) / static_cast<double>(stats.kv_pages_total);
}

void write_cache(TextWriter& out, const EngineStats& stats) {
  out.gauge(
      "vllm:kv_cache_usage_perc", "Share of KV pages held by requests (0-1).", used_share(stats));
  out.family("vllm:cache_config_info", "gauge", "Configuration of the KV cache.");
  out.sample("vllm:cache_config_info",
             {{"block_size", std::to_string(stats.page_tokens)},
              {"num_gpu_blocks", std::to_string(stats.kv_pages_total)},
              {"cache_dtype", stats.kv_format},
              {"enable_prefix_caching", stats.prefix_caching ? "True" : "False"}},
             1);
  out.counter("vllm:prefix_cache_queries_total",
              "Prompt tokens looked up in the prefix index.",
              stats.prefix_query_tokens);
  out.counter("vllm:prefix_cache_hits_total",
              "Prompt tokens found in the prefix index.",
              stats.prefix_hit_tokens);
  out.counter("vllm:prompt_tokens_cached_total",
              "Prompt tokens found in the prefix index.",
              stats.prefix_hit_tokens);

  out.family("headwater:kv_pages", "gauge", "KV pages (of one head) by state.");
  out.sample("headwater:kv_pages", {{"state", "free"}}, static_cast<double>(stats.kv_pages_free));
  out.sample("headwater:kv_pages", {{"state", "held"}}, static_cast<double>(stats.kv_pages_held));
  out.sample(
      "headwater:kv_pages", {{"state", "cached"}}, static_cast<double>(stats.kv_pages_cached));
  out.family("headwater:kv_bytes", "gauge", "Bytes of the KV pool by state.");
  out.sample("headwater:kv_bytes", {{"state", "free"}}, static_cast<double>(stats.kv_bytes_free));
  out.sample("headwater:kv_bytes", {{"state", "held"}}, static_cast<double>(stats.kv_bytes_held));
  out.sample(
      "headwater:kv_bytes", {{"state", "cached"}}, static_cast<double>(stats.kv_bytes_cached));
  out.gauge("headwater:kv_bytes_dense_equivalent",
            "Bytes the running sequences would hold if every head kept every token.",
            static_cast<double>(stats.kv_bytes_dense_equivalent));
  out.family("headwater:kv_tokens",
             "gauge",
             "Tokens that running sequences hold, summed over heads of a class.");
  out.sample("headwater:kv_tokens", {{"class", "full"}}, static_cast<double>(stats.kv_tokens_full));
  out.sample("headwater:kv_tokens",
             {{"class", "compressed"}},
             static_cast<double>(stats.kv_tokens_compressed));
  out.counter("headwater:kv_blocks_folded_total",
              "Blocks of single heads that left their window into a compensation token.",
              stats.kv_blocks_folded);
}

void write_requests(TextWriter& out, const EngineStats& stats) {
  out.gauge(
      "vllm:num_requests_running", "Sequences that run.", static_cast<double>(stats.num_running));
  out.gauge(
      "vllm:num_requests_waiting", "Requests that wait.", static_cast<double>(stats.num_waiting));
  out.counter("vllm:prompt_tokens_total", "Prompt tokens processed.", stats.prompt_tokens);
  out.counter("vllm:generation_tokens_total", "Tokens generated.", stats.generation_tokens);
  out.counter(
      "vllm:num_preemptions_total", "Sequences that gave up their pages.", stats.num_preemptions);
  out.family("vllm:request_success_total", "counter", "Finished choices by reason.");
  for (size_t reason = 1; reason < stats.finished.size(); ++reason)  // 0: not finished
    out.sample("vllm:request_success_total",
               {{"finished_reason", kFinishReasonNames[reason]}},
               static_cast<double>(stats.finished[reason]));
  // No adapters and no speculation here; routers and bench clients still look for the names.
  out.family("vllm:lora_requests_info", "gauge", "Adapters in use; the value is unix time.");
  out.sample("vllm:lora_requests_info",
             {{"max_lora", "0"}, {"running_lora_adapters", ""}, {"waiting_lora_adapters", ""}},
             static_cast<double>(std::time(nullptr)));
  for (const char* what : {"drafts", "draft_tokens", "accepted_tokens"}) {
    out.counter("vllm:spec_decode_num_" + std::string(what) + "_total", "Speculative decoding.", 0);
  }
  out.counter("headwater:steps_total", "Steps of the engine loop.", stats.num_steps);
  out.counter("headwater:host_draws_total",
              "Tokens that the host drew while the device waited: penalties, biases, logprobs, and "
              "draws that the likeliest 128 tokens do not decide.",
              stats.host_draws);
}

void write_histograms(TextWriter& out, const EngineStats& stats) {
  out.histogram(
      "vllm:time_to_first_token_seconds", "Arrival to first token.", stats.time_to_first_token_s);
  out.histogram("vllm:inter_token_latency_seconds",
                "Gap between tokens of one choice.",
                stats.inter_token_latency_s);
  out.histogram("vllm:request_time_per_output_token_seconds",
                "Mean gap between tokens, per request.",
                stats.time_per_output_token_s);
  out.histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", stats.e2e_latency_s);
  out.histogram("vllm:request_queue_time_seconds", "Queued to scheduled.", stats.queue_time_s);
  out.histogram(
      "vllm:request_prefill_time_seconds", "Scheduled to first token.", stats.prefill_time_s);
  out.histogram("vllm:request_decode_time_seconds", "First to last token.", stats.decode_time_s);
  out.histogram(
      "vllm:request_inference_time_seconds", "Scheduled to last token.", stats.inference_time_s);
  out.histogram(
      "vllm:request_prompt_tokens", "Prompt tokens of a request.", stats.prompt_tokens_per_request);
  out.histogram("vllm:request_generation_tokens",
                "Tokens generated for a request.",
                stats.generation_tokens_per_request);
  out.histogram(
      "vllm:request_params_max_tokens", "max_tokens of a request.", stats.max_tokens_per_request);
  out.histogram("vllm:request_params_n", "n of a request.", stats.choices_per_request);
  out.histogram("vllm:iteration_tokens_total", "Tokens of one step.", stats.tokens_per_step);
}

void write_deprecated(TextWriter& out, const EngineStats& stats) {
  out.gauge(
      "vllm:gpu_cache_usage_perc", "Deprecated: vllm:kv_cache_usage_perc.", used_share(stats));
  out.counter("vllm:gpu_prefix_cache_queries_total",
              "Deprecated: vllm:prefix_cache_queries_total.",
              stats.prefix_query_tokens);
  out.counter("vllm:gpu_prefix_cache_hits_total",
              "Deprecated: vllm:prefix_cache_hits_total.",
              stats.prefix_hit_tokens);
  out.gauge("vllm:num_requests_swapped", "Deprecated: nothing is swapped.", 0);
  out.histogram("vllm:time_per_output_token_seconds",
                "Deprecated: vllm:inter_token_latency_seconds.",
                stats.inter_token_latency_s);
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

// Field 22 of /proc/self/stat (ticks since boot) over the boot time in /proc/stat.
double process_start_time() {
  std::ifstream stat("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(stat)), {});
  std::istringstream rest(
      text.substr(text.rfind(')') == std::string::npos ? text.size() : text.rfind(')') + 1));
  std::string field;
  for (int i = 3; i <= 22 && rest >> field; ++i) {
  }
  std::ifstream boot("/proc/stat");
  double boot_time = 0;
  for (std::string key; boot >> key;) {
    if (key == "btime") {
      boot >> boot_time;
      break;
    }
  }
  return boot_time +
         std::strtod(field.c_str(), nullptr) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace

void HttpMetrics::record(const std::string& handler,
                         const std::string& method,
                         int status,
                         double seconds,
                         size_t request_bytes) {
  const std::string status_class = std::to_string(status / 100) + "xx";
  const std::lock_guard lock(mutex_);
  ++requests_[{handler, method, status_class}];
  Timing& timing = timings_[{handler, method}];
  timing.seconds.observe(seconds);
  timing.request_bytes += request_bytes;
}

std::string HttpMetrics::text() const {
  TextWriter out({});
  const std::lock_guard lock(mutex_);
  out.family("http_requests_total", "counter", "Requests by handler, method and status.");
  for (const auto& [key, count] : requests_) {
    const auto& [handler, method, status] = key;
    out.sample("http_requests_total",
               {{"handler", handler}, {"method", method}, {"status", status}},
               static_cast<double>(count));
  }
  out.family("http_request_duration_seconds", "histogram", "Request received to reply complete.");
  for (const auto& [key, timing] : timings_) {
    out.histogram_samples("http_request_duration_seconds",
                          {{"handler", key.first}, {"method", key.second}},
                          timing.seconds);
  }
  out.family("http_request_size_bytes", "summary", "Size of request bodies.");
  for (const auto& [key, timing] : timings_) {
    const Labels labels = {{"handler", key.first}, {"method", key.second}};
    out.sample("http_request_size_bytes_sum", labels, static_cast<double>(timing.request_bytes));
    out.sample("http_request_size_bytes_count", labels, static_cast<double>(timing.seconds.count));
  }
  return out.take();
}

std::string engine_metrics_text(const EngineStats& stats,
                                const std::string& model_name,
                                bool deprecated) {
  TextWriter out({{"model_name", model_name}, {"engine", "0"}});
  write_requests(out, stats);
  write_cache(out, stats);
  write_histograms(out, stats);
  if (deprecated) write_deprecated(out, stats);
  return out.take();
}

std::string process_metrics_text() {
  TextWriter out({});
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  out.family("process_cpu_seconds_total", "counter", "User and system CPU time.");
  out.sample("process_cpu_seconds_total", {}, seconds(usage.ru_utime) + seconds(usage.ru_stime));
  std::ifstream statm("/proc/self/statm");
  double virtual_pages = 0, resident_pages = 0;
  if (statm >> virtual_pages >> resident_pages) {
    const auto page_bytes = static_cast<double>(sysconf(_SC_PAGESIZE));
    out.gauge("process_virtual_memory_bytes", "Virtual memory.", virtual_pages * page_bytes);
    out.gauge("process_resident_memory_bytes", "Resident memory.", resident_pages * page_bytes);
  }
  std::error_code error;
  double num_fds = 0;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error)) {
    ++num_fds;
  }
  out.gauge("process_open_fds", "Open file descriptors.", num_fds);
  out.gauge("process_start_time_seconds", "Start of the process, unix time.", process_start_time());
  return out.take();
}

}  // namespace headwater
