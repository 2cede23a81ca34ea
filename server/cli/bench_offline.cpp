#include "server/cli/bench_offline.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <iostream>

#include "engine/offline/offline_bench.h"
#include "kernels/base/status.h"
#include "kernels/make_ops.h"
#include "server/config/option_table.h"

namespace headwater::cli {
namespace {

struct OfflineConfig {
  bool offline = false;
  std::string shape = "llama3-8b";
  std::string weights = "f16";
  std::string device = "auto";
  int32_t threads = 0;
  int32_t max_num_batched_tokens = 512;
  std::string prompt_lens = "512";
  std::string batch_sizes = "1";
  std::string depths = "0";
  int32_t output_len = 64;
  int32_t repetitions = 3;
};

void describe(OfflineConfig& c, OptionTable& visit) {
  visit(
      "offline", c.offline, "measure a model of random weights in this process, without a server");
  visit("shape", c.shape, "llama3-8b, llama3.2-1b or smollm2-135m");
  visit(
      "weights", c.weights, "f32, f16, bf16, q8_0, q4_0, q4_1, q4_k (with a Q6_K output) or q6_k");
  visit("device", c.device, "auto, cuda, cpu or ref");
  visit("threads", c.threads, "CPU threads; 0 = one per usable CPU");
  visit("max-num-batched-tokens", c.max_num_batched_tokens, "rows of one step of a prefill");
  visit("prompt-lens", c.prompt_lens, "prefills, in tokens: 512,8192; empty = none");
  visit("batch-sizes", c.batch_sizes, "decodes, in sequences: 1,8,64; empty = none");
  visit("depths", c.depths, "tokens that each decoding sequence holds before: 0,1024");
  visit("output-len", c.output_len, "tokens decoded, of each sequence");
  visit("repetitions", c.repetitions, "of every measurement, after one that warms up");
}

std::vector<int32_t> numbers(const char* flag, const std::string& list) {
  std::vector<int32_t> values;
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    int32_t value = -1;
    const auto [last, error] = std::from_chars(list.data() + at, list.data() + end, value);
    if (error != std::errc() || last != list.data() + end || value < 0 || value > 1 << 20)
      throw ConfigError(std::string("--") + flag + ": must be numbers up to " +
                        std::to_string(1 << 20) + ", as in 512,8192; got \"" + list + "\"");
    values.push_back(value);
    at = end + 1;
  }
  return values;
}

// llama-bench's columns, then what must be read and computed, and how near that is to what the
// device did in a copy and in a large product of f16.
void print_row(const OfflineConfig& config,
               const RandomModel& model,
               const OfflineResult& r,
               double copy,
               double product) {
  const std::string test = r.prompt > 0 ? "pp" + std::to_string(r.prompt)
                                        : "tg" + std::to_string(r.generated) + " x" +
                                              std::to_string(r.batch) +
                                              (r.depth > 0 ? " @ d" + std::to_string(r.depth) : "");
  const double floor =
      std::max(static_cast<double>(r.bytes) / copy, product > 0 ? r.flops / product : 0.0);
  std::printf("| %s %s | %.2f GiB | %.2f B | %s | %.2f ± %.2f | %.3f | %.1f | %.2f | %.1f %% |\n",
              config.shape.c_str(),
              config.weights.c_str(),
              static_cast<double>(model.files.weight_bytes) / double{1 << 30},
              static_cast<double>(model.files.num_parameters) / 1e9,
              test.c_str(),
              r.tokens_per_second(),
              r.tokens_per_second() * (r.slowest_seconds / r.seconds - 1),
              1e3 * r.seconds / std::max(1, r.generated),
              static_cast<double>(r.bytes) / r.seconds / 1e9,
              r.flops / r.seconds / 1e12,
              100 * floor / r.seconds);
  std::fflush(stdout);
}

}  // namespace

bool asks_offline(const std::vector<std::string>& args) {
  return std::ranges::any_of(args,
                             [](const std::string& arg) { return arg.starts_with("--offline"); });
}

std::string bench_offline_help() {
  OfflineConfig config;
  OptionTable table;
  describe(config, table);
  std::vector<std::string> names;
  for (const Option& option : table.options()) names.push_back(option.name);
  return "\nWithout a server: the speed of a shape on this machine, with random weights\n"
         "  headwater bench --offline --shape llama3-8b --weights q8_0 --batch-sizes 1,64 --depths "
         "1024\n" +
         format_options(table, {{"Offline", names}});
}

int run_bench_offline(const std::vector<std::string>& args) {
  OfflineConfig config;
  OptionTable table;
  describe(config, table);
  if (const auto words = apply_flags(table, args); !words.empty())
    throw ConfigError("bench takes flags only, got \"" + words[0] + "\"");
  const std::vector<int32_t> prompts = numbers("prompt-lens", config.prompt_lens);
  const std::vector<int32_t> batches = numbers("batch-sizes", config.batch_sizes);
  const std::vector<int32_t> depths = numbers("depths", config.depths);
  if (config.output_len < 1 || config.repetitions < 1 || config.max_num_batched_tokens < 1)
    throw ConfigError(
        "--output-len, --repetitions and --max-num-batched-tokens must be at least 1");
  int64_t most_tokens = 0, longest = 0;
  for (const int32_t prompt : prompts) longest = std::max<int64_t>(longest, prompt);
  most_tokens = longest;
  for (const int32_t batch : batches)
    for (const int32_t depth : depths) {
      const int64_t length = int64_t{depth} + config.output_len;
      longest = std::max(longest, length);
      most_tokens = std::max(most_tokens, batch * length);
    }
  ThreadPool pool(config.threads);
  const auto ops = make_ops(config.device, pool);
  std::printf("device %s\n", std::string(ops->description()).c_str());
  const auto model = make_random_model(
      config.shape, config.weights, static_cast<int32_t>(std::max<int64_t>(longest, 1)));
  OfflineBench bench(*model, *ops, config.max_num_batched_tokens, most_tokens);
  const double copy = bench.copy_bytes_per_second();
  // Minutes on a CPU, whose ceiling is the memory's anyway.
  const double product = ops->memory_is_host() ? 0 : bench.product_flops_per_second();
  std::printf("copy %.1f GB/s", copy / 1e9);
  if (product > 0) std::printf(", product of f16 %.0f TFLOP/s", product / 1e12);
  std::printf(
      "\n\n| model | size | params | test | t/s | ms/step | GB/s | TFLOP/s | of the floor |\n"
      "|---|---|---|---|---|---|---|---|---|\n");
  for (const int32_t prompt : prompts)
    if (prompt > 0)
      print_row(config, *model, bench.prefill(1, prompt, config.repetitions), copy, product);
  for (const int32_t batch : batches)
    for (const int32_t depth : depths)
      if (batch > 0)
        print_row(config,
                  *model,
                  bench.decode(batch, depth, config.output_len, config.repetitions),
                  copy,
                  product);
  return 0;
}

}  // namespace headwater::cli
