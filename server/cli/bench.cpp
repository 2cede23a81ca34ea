#include "server/cli/bench.h"

#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "engine/config/config_issues.h"
#include "kernels/base/status.h"
#include "server/cli/bench_load.h"
#include "server/cli/bench_prompts.h"
#include "server/cli/bench_quality.h"
#include "server/cli/bench_stats.h"
#include "server/cli/http_client.h"
#include "server/config/option_table.h"

namespace headwater::cli {
namespace {

namespace asio = boost::asio;
using Json = nlohmann::ordered_json;

void describe_bench(BenchConfig& c, QualityConfig& q, OptionTable& visit) {
  visit("url", c.url, "the server");
  visit("model", c.model, "model name; default: the first one the server lists");
  visit("api-key", c.api_key, "sent as Authorization: Bearer KEY");
  visit("endpoint", c.endpoint, "completions or chat");
  visit("num-prompts", c.num_prompts, "requests to send");
  visit("request-rate",
        c.request_rate,
        "requests per second, arriving as a Poisson process; inf = all at once");
  visit("concurrency",
        c.concurrency,
        "most requests under way; with a rate of inf a closed loop; 0 = no bound");
  visit("num-warmups", c.num_warmups, "requests sent before the measurement");
  visit("dataset",
        c.dataset,
        "JSONL file; each line has prompt (text or ids) or messages, and maybe output_len");
  visit("random-input-len", c.random_input_len, "tokens of a random prompt (without --dataset)");
  visit("random-output-len", c.random_output_len, "max_tokens, unless the dataset says otherwise");
  visit("ignore-eos", c.ignore_eos, "always generate max_tokens");
  visit("temperature", c.temperature, "0 = greedy");
  visit("seed", c.seed, "of arrivals and random prompts");
  visit("goodput", c.goodput, "bounds in ms that a good request keeps: ttft:200,tpot:50,e2el:4000");
  visit("metric-percentiles", c.metric_percentiles, "percentiles to print");
  visit("save-result", c.save_result, "JSON file for the figures and every request");
  visit("json", c.json, "print the figures as JSON instead of tables");
  visit("quality", q.quality, "measure what the server's attention policy costs in answers, too");
  visit("quality-lengths", q.lengths, "tokens of the prompts, one or more");
  visit("quality-tasks", q.tasks, "names of tasks (below); default: all");
  visit("quality-prompts", q.num_prompts, "prompts per task and length, over as many depths");
  visit("quality-text", q.text, "file whose text is forced; default: generated sentences");
}

void check(const BenchConfig& c, const QualityConfig& q) {
  constexpr int64_t kMany = 10'000'000;
  ConfigIssues issues;
  issues.one_of("--endpoint", c.endpoint, {"completions", "chat"});
  issues.range("--num-prompts", c.num_prompts, 1, kMany);
  issues.range("--concurrency", c.concurrency, 0, kMany);
  issues.range("--num-warmups", c.num_warmups, 0, kMany);
  issues.range("--random-input-len", c.random_input_len, 1, kMany);
  issues.range("--random-output-len", c.random_output_len, 1, kMany);
  if (!(c.request_rate > 0)) issues.add("--request-rate: must be above 0, or inf");
  if (!(c.temperature >= 0)) issues.add("--temperature: must be at least 0");
  std::string all;
  for (const std::string& issue : issues.take()) all += (all.empty() ? "" : "\n") + issue;
  if (!all.empty()) throw ConfigError(all);
  if (q.quality) check_quality(q);
}

std::string first_model(Caller& caller) {
  const Json models = caller.call_json("/v1/models");
  const auto data = models.find("data");
  if (data == models.end() || !data->is_array() || data->empty() || !data->front().is_object() ||
      !data->front().contains("id")) {
    throw std::runtime_error("/v1/models lists no model; name one with --model");
  }
  return data->front()["id"].get<std::string>();
}

using Counters = std::map<std::string, double>;

// Counters of the Prometheus text, summed over labels; empty if there is no such endpoint.
Counters read_counters(Caller& caller) {
  // A server counts a request shortly after its last byte.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  Counters counters;
  const HttpReply reply = caller.call("/metrics");
  if (reply.status != 200) return counters;
  std::istringstream lines(reply.body);
  for (std::string line; std::getline(lines, line);) {
    const std::string name = line.substr(0, line.find_first_of("{ "));
    const size_t value = line.rfind(' ');
    if (line.starts_with('#') || value == std::string::npos || !name.ends_with("_total")) continue;
    counters[name] += std::strtod(line.c_str() + value, nullptr);
  }
  return counters;
}

Json counter_deltas(const Counters& before, const Counters& after) {
  Json deltas = Json::object();
  for (const auto& [name, value] : after) {
    const auto old = before.find(name);
    const double delta = value - (old == before.end() ? 0 : old->second);
    if (delta != 0) deltas[name] = delta;
  }
  return deltas;
}

// One line that is rewritten on a terminal; ten lines in all otherwise.
class ProgressLine {
 public:
  void show(const BenchProgress& p) {
    const bool is_last = p.done == p.total;
    const int64_t tenth = p.done * 10 / p.total;
    if (!is_tty_ && tenth == shown_ && !is_last) return;
    if (is_tty_ && !is_last && p.elapsed_s - shown_s_ < 0.1) return;
    shown_ = tenth;
    shown_s_ = p.elapsed_s;
    std::fprintf(stderr,
                 "%s%lld/%lld done, %lld running, %.1f s, %.1f chunks/s%s",
                 is_tty_ ? "\r\033[K" : "",
                 static_cast<long long>(p.done),
                 static_cast<long long>(p.total),
                 static_cast<long long>(p.running),
                 p.elapsed_s,
                 static_cast<double>(p.chunks) / p.elapsed_s,
                 is_tty_ && !is_last ? "" : "\n");
  }

 private:
  const bool is_tty_ = isatty(STDERR_FILENO) == 1;
  int64_t shown_ = 0;
  double shown_s_ = 0;
};

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%d-%H%M%S", &utc);
  return text;
}

void report(const LoadResult& result,
            const BenchSummary& summary,
            const LoadShape& shape,
            const Json& deltas) {
  constexpr int kErrorsShown = 10;
  int shown = 0;
  for (const RequestRecord& record : result.records) {
    if (record.success || shown++ >= kErrorsShown) continue;
    std::cout << "Error " << shown - 1 << ": " << record.error << "\n";
  }
  std::cout << format_table(summary, shape);
  char line[128];
  std::snprintf(
      line, sizeof line, "%-40s %-10.2f\n", "Tokens per chunk:", summary.tokens_per_chunk);
  std::cout << line;
  if (!deltas.empty()) std::cout << "Server counters over the run:\n";
  for (const auto& [name, value] : deltas.items()) {
    std::snprintf(line, sizeof line, "  %-46s %.0f\n", name.c_str(), value.get<double>());
    std::cout << line;
  }
}

std::vector<std::string> load_bodies(const BenchConfig& config,
                                     const std::string& model,
                                     Caller& caller) {
  return config.dataset.empty() ? random_bodies(config, model, caller)
                                : dataset_bodies(config, model);
}

// The same load again, of other random prompts: those of the first run are in the prefix cache.
std::vector<std::string> dense_bodies(BenchConfig config,
                                      const std::string& model,
                                      Caller& caller) {
  ++config.seed;
  std::vector<std::string> bodies = load_bodies(config, model, caller);
  for (std::string& body : bodies) {
    Json json = Json::parse(body);
    json["attention"] = {{"policy", "dense"}};
    body = json.dump();
  }
  return bodies;
}

QualitySection speed_section(const BenchSummary& dense, const BenchSummary& served) {
  const auto row = [&](const char* name, double a, double b, int precision) {
    return QualityRow{name, {a, b}, precision};
  };
  return {"Speed of the load above",
          {row("output tokens/s", dense.output_throughput, served.output_throughput, 2),
           row("mean time per output token, ms", dense.tpot.mean_ms, served.tpot.mean_ms, 2),
           row("mean time to first token, ms", dense.ttft.mean_ms, served.ttft.mean_ms, 1)}};
}

}  // namespace

std::string bench_help() {
  BenchConfig config;
  QualityConfig quality;
  OptionTable table;
  describe_bench(config, quality, table);
  return "Load a server with OpenAI's API and measure it.\n"
         "\n"
         "Usage: headwater bench [options]\n"
         "\n"
         "Examples\n"
         "  headwater bench --num-prompts 50 --random-input-len 512 --random-output-len 64\n"
         "      50 requests at once: throughput\n"
         "  headwater bench --request-rate 2 --goodput ttft:500,tpot:50 --save-result r.json\n"
         "      two requests a second whatever the server does: latency under a given load\n"
         "  headwater bench --concurrency 8 --dataset prompts.jsonl --endpoint chat\n"
         "      eight clients that each wait for their answer: a closed loop hides queueing\n"
         "  headwater bench --quality --quality-lengths 2048,8192 --num-prompts 8 --concurrency 2\n"
         "      speed and answers, as served and dense\n"
         "\n"
         "Definitions, labels and JSON keys are vLLM's. Token counts come from the server's "
         "usage.\n" +
         format_options(
             table,
             {{"Server", {"url", "model", "api-key", "endpoint"}},
              {"Load", {"num-prompts", "request-rate", "concurrency", "num-warmups"}},
              {"Prompts",
               {"dataset",
                "random-input-len",
                "random-output-len",
                "ignore-eos",
                "temperature",
                "seed"}},
              {"Quality",
               {"quality", "quality-lengths", "quality-tasks", "quality-prompts", "quality-text"}},
              {"Results", {"goodput", "metric-percentiles", "save-result", "json"}}}) +
         quality_help();
}

int run_bench(const std::vector<std::string>& args) {
  BenchConfig config;
  QualityConfig quality;
  OptionTable table;
  describe_bench(config, quality, table);
  if (const auto words = apply_flags(table, args); !words.empty()) {
    throw ConfigError("bench takes flags only, got \"" + words[0] + "\"");
  }
  check(config, quality);
  const Goodput goodput = parse_goodput(config.goodput);
  const std::vector<double> percentiles = parse_percentiles(config.metric_percentiles);

  asio::io_context io;
  HttpClient client(io, parse_url(config.url), config.api_key);
  Caller caller(io, client, config.url);
  const std::string model = config.model.empty() ? first_model(caller) : config.model;
  const std::vector<std::string> bodies = load_bodies(config, model, caller);
  const std::string target = config.endpoint == "chat" ? "/v1/chat/completions" : "/v1/completions";

  if (config.num_warmups > 0) {
    const std::vector<std::string> warmups(static_cast<size_t>(config.num_warmups), bodies[0]);
    const LoadShape one_by_one{std::numeric_limits<double>::infinity(), 1};
    const LoadResult warm =
        run_load(io, client, target, warmups, one_by_one, 0, [](const auto&) {});
    if (!warm.records[0].success) {
      throw std::runtime_error("the warm-up request failed: " + warm.records[0].error);
    }
  }
  const LoadShape shape{config.request_rate, config.concurrency};
  const Counters before = read_counters(caller);
  ProgressLine progress;
  const LoadResult result =
      run_load(io, client, target, bodies, shape, config.seed, [&](const BenchProgress& p) {
        progress.show(p);
      });
  const Json deltas = counter_deltas(before, read_counters(caller));
  const BenchSummary summary = summarize(result.records, result.duration_s, goodput, percentiles);
  Json json = {{"date", now_text()},
               {"endpoint_type", "openai"},
               {"backend", "openai"},
               {"label", nullptr},
               {"model_id", model},
               {"tokenizer_id", model}};
  json.update(to_json(summary, shape, result.records));
  json["server_counters"] = deltas;
  if (!config.json) report(result, summary, shape, deltas);
  if (quality.quality) {
    const std::vector<std::string> again = dense_bodies(config, model, caller);
    ProgressLine dense_progress;
    const LoadResult dense =
        run_load(io, client, target, again, shape, config.seed, [&](const BenchProgress& p) {
          dense_progress.show(p);
        });
    ProgressLine quality_progress;
    QualityResult answers = run_quality(
        io, client, caller, quality, model, config.concurrency, config.seed, [&](const auto& p) {
          quality_progress.show(p);
        });
    answers.sections.insert(
        answers.sections.begin(),
        speed_section(summarize(dense.records, dense.duration_s, goodput, percentiles), summary));
    std::vector<std::string> notes = quality_notes(answers.answers);
    if (!config.dataset.empty())
      notes.push_back(
          "The dense load ran second over the same prompts: the prefix cache shortens its time to "
          "the first token.");
    json["quality"] = quality_json(answers.sections, notes, answers.answers);
    if (!config.json) std::cout << format_quality(answers.sections, notes);
  }
  if (config.json) std::cout << json.dump(1, ' ', false, Json::error_handler_t::replace) << "\n";
  if (!config.save_result.empty()) {
    std::ofstream file(config.save_result);
    file << json.dump(1, ' ', false, Json::error_handler_t::replace) << "\n";
    if (!file.flush()) throw ConfigError("--save-result: cannot write " + config.save_result);
  }
  return summary.failed == 0 ? 0 : 1;
}

}  // namespace headwater::cli
