#include "server/cli/calibrate.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/calibrate/methods.h"
#include "kernels/base/status.h"
#include "kernels/make_ops.h"
#include "server/cli/head_map.h"
#include "server/cli/load_progress.h"
#include "server/config/option_table.h"

namespace headwater::cli {
namespace {

struct CalibrateConfig {
  std::string method = "measured";
  std::string output;
  std::string plot;
  std::string prompts;
  std::string published;
  std::string device = "auto";
  int32_t threads = 0;
  CalibrationOptions options;
};

void describe_calibrate(CalibrateConfig& c, OptionTable& visit) {
  CalibrationOptions& o = c.options;
  visit("method", c.method, "how heads are found; see below");
  visit("output", c.output, "the head table to write (JSON)");
  visit("plot", c.plot, "also draw the heat map: FILE.svg or FILE.png, several with commas");
  visit("published",
        c.published,
        "duo, moa: also write the table as the authors publish theirs, into this folder");
  visit("device",
        c.device,
        "auto (a GPU if there is one, else the CPU), cuda, cpu, or ref: the fp32 oracle");
  visit("threads", c.threads, "worker threads; 0: one per core");
  visit("seed", o.seed, "of everything random; the same seed gives the same table");
  visit("block-tokens", o.block_tokens, "razor: random tokens of a block, fewer if positions end");
  visit("repeats", o.repeats, "razor: how often the block comes");
  visit("induction", o.induction, "razor: part of the heads kept for their induction score");
  visit("echo", o.echo, "razor: part of the heads kept for their echo score");
  visit("heads", o.heads, "measured, duo: part of the heads that keep everything");
  visit("budget",
        o.budget,
        "measured: instead of --heads, as many as fit this part of the dense KV bytes; 0: --heads");
  visit("budget-tokens", o.budget_tokens, "measured: the context at which --budget holds");
  visit("num-prompts", o.num_prompts, "measured, duo, moa: questions or texts");
  visit("min-tokens", o.min_tokens, "measured, duo, moa: the shortest of them");
  visit("max-tokens", o.max_tokens, "measured, duo, moa: the longest, less if positions end");
  visit("window",
        o.window,
        "measured, duo: recent tokens that a compressed head sees; far fewer than the questions "
        "have");
  visit("question-tokens",
        o.question_tokens,
        "measured: so many tokens at the end of a prompt see by the compressed rule too, as in a "
        "second question about the same text; 0: only the answer does");
  visit("prompts",
        c.prompts,
        "measured, moa: ask these instead: lines of {\"prompt\": text, \"answer\": text}, the "
        "answer only "
        "to count how many are right");
  visit("duo-data",
        o.duo_data,
        "duo: passkeys, as published, or questions, as measured asks them (with the model's own "
        "answers)");
  visit("duo-steps", o.duo_steps, "duo: steps of one text each; the paper takes 2000");
  visit("duo-rate", o.duo_rate, "duo: learning rate");
  visit("duo-press", o.duo_press, "duo: how hard gates are pressed shut (regularisation)");
  visit("density", o.density, "moa: part of the context that heads hold in the mean");
  visit("moa-rules", o.moa_rules, "moa: distinct spans of a layer, 1 or 2; 0: any number");
  visit("alpha-step", o.alpha_step, "moa: spans differ by so many tokens");
  visit("moa-group", o.moa_group, "moa: a KV head counts as the sum or the max of its query heads");
  visit("moa-rows",
        o.moa_rows,
        "moa: all, or answers: only what answers lose counts, for prompts that see everything "
        "(serve --prefill-mode faithful)");
}

std::string read_file(const std::string& path) {
  constexpr size_t kMaxBytes = size_t{256} << 20;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ConfigError("prompts " + path + " cannot be read");
  std::string text;
  for (char buffer[1 << 16]; file.read(buffer, sizeof(buffer)), file.gcount() > 0;) {
    text.append(buffer, static_cast<size_t>(file.gcount()));
    if (text.size() > kMaxBytes) throw ConfigError("prompts " + path + ": over 256 MiB");
  }
  return text;
}

std::vector<RetrievalPrompt> read_prompts(const std::string& path,
                                          const Tokenizer& tokenizer,
                                          int32_t max_positions) {
  std::vector<RetrievalPrompt> prompts;
  if (path.empty()) return prompts;
  const std::string text = read_file(path);
  size_t line_number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto fail = [&](const std::string& what) {
      throw ConfigError("prompts " + path + ", line " + std::to_string(line_number) + ": " + what);
    };
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object() || !json.contains("prompt") || !json["prompt"].is_string())
      fail("must be a JSON object with a text \"prompt\"");
    RetrievalPrompt prompt;
    prompt.task = "file";
    prompt.tokens = tokenizer.encode(json["prompt"].get<std::string>(), true, false);
    if (json.contains("answer")) {
      if (!json["answer"].is_string()) fail("answer must be a text");
      prompt.expected = json["answer"].get<std::string>();
    }
    constexpr int64_t kAnswerRoom = 128;
    if (prompt.tokens.empty() ||
        static_cast<int64_t>(prompt.tokens.size()) + kAnswerRoom > max_positions)
      fail("the prompt has " + std::to_string(prompt.tokens.size()) + " tokens, expected 1 to " +
           std::to_string(max_positions - kAnswerRoom));
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) throw ConfigError("prompts " + path + " has no prompts");
  return prompts;
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  if (!(file << bytes) || !file.flush()) throw std::runtime_error("cannot write " + path);
}

HeadMap head_map(const HeadTable& table, std::string_view score) {
  HeadMap map;
  map.num_layers = table.model.num_layers;
  map.heads_per_layer = table.heads_per_layer();
  map.values = table.scores.at(std::string(score));
  for (const int32_t head : table.heads) map.marked.push_back(head == HeadTable::kFull);
  map.title = table.model.name + ", " + table.method + ": " + std::string(score);
  return map;
}

std::vector<std::string> plot_files(const std::string& list) {
  std::vector<std::string> files;
  for (size_t at = 0; at < list.size();) {
    const size_t end = std::min(list.find(',', at), list.size());
    files.push_back(list.substr(at, end - at));
    at = end + 1;
    if (!files.back().ends_with(".svg") && !files.back().ends_with(".png"))
      throw ConfigError("plot draws .svg and .png, got \"" + files.back() + "\"");
  }
  return files;
}

// Everything that the result depends on, and nothing else.
std::string checkpoint_key(const CalibrateConfig& config, const HeadTableModel& model) {
  CalibrateConfig copy = config;
  OptionTable table;
  describe_calibrate(copy, table);
  std::string key = "headwater.calibrate/1 " + model.fingerprint + " " + model.name;
  for (const Option& option : table.options())
    if (option.name != "output" && option.name != "plot" && option.name != "published" &&
        option.name != "threads")
      key += " " + option.name + "=" + option.get();
  std::ranges::replace(key, '\n', ' ');
  return key;
}

}  // namespace

int run_calibrate(const std::vector<std::string>& args) {
  CalibrateConfig config;
  OptionTable options;
  describe_calibrate(config, options);
  const std::vector<std::string> words = apply_flags(options, args);
  if (words.size() != 1)
    throw ConfigError("calibrate takes one model, got " + std::to_string(words.size()) +
                      " words; expected: headwater calibrate MODEL --output FILE");
  if (config.output.empty()) throw ConfigError("calibrate needs --output FILE");
  if (config.threads < 0) throw ConfigError("threads must not be negative");
  const std::vector<std::string> plots = plot_files(config.plot);
  const CalibrationMethod& method = find_calibration_method(config.method);

  const auto start = std::chrono::steady_clock::now();
  const auto files = load_model(words[0]);
  const auto tokenizer = make_tokenizer(files->vocabulary);
  ThreadPool pool(config.threads);
  const auto ops = make_ops(config.device, pool);
  Checkpoint checkpoint(config.output + ".partial",
                        checkpoint_key(config, head_table_model(*files)));
  const auto say = [](const std::string& line) { std::cerr << line << "\n"; };
  if (checkpoint.resumed()) say("Going on from " + config.output + ".partial.");

  std::optional<LoadProgress> bar = make_load_progress();
  Calibration calibration{
      *files,
      *tokenizer,
      *ops,
      pool,
      config.options,
      read_prompts(config.prompts, *tokenizer, files->spec.max_positions),
      checkpoint,
      [&](const std::string& stage, int64_t done, int64_t total) { (*bar)(stage, done, total); },
      [&](const std::string& line) {
        bar = make_load_progress();  // the old bar ends its line
        say(line);
      },
      {}};
  const HeadTable table = method.run(calibration);
  bar.reset();

  write_file(config.output, write_head_table(table));
  if (!config.published.empty()) {
    if (calibration.published.empty())
      throw ConfigError("method " + config.method + " has no published form: leave out published");
    std::filesystem::create_directories(config.published);
    for (const auto& [name, bytes] : calibration.published)
      write_file(config.published + "/" + name, bytes);
  }
  checkpoint.remove();
  const HeadMap map = head_map(table, method.map);
  for (const std::string& plot : plots)
    write_file(plot, plot.ends_with(".svg") ? draw_svg(map) : draw_png(map));
  std::cout << draw_text(map, isatty(STDOUT_FILENO) == 1);
  const auto full = std::ranges::count(table.heads, HeadTable::kFull);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%td of %zu heads keep everything. %s written after %.0f s.\n",
              full,
              table.heads.size(),
              config.output.c_str(),
              took.count());
  return 0;
}

std::string calibrate_help() {
  CalibrateConfig config;
  OptionTable table;
  describe_calibrate(config, table);
  std::string text =
      "Find the heads of a model that have to keep the whole context, and write them as a head\n"
      "table. A server with the table lets every other head drop what is far back:\n"
      "\n"
      "  headwater calibrate model.gguf --output heads.json\n"
      "  headwater serve --model model.gguf --attention razor --head-table heads.json\n"
      "\n"
      "Usage: headwater calibrate MODEL --output FILE [options]    a .gguf file or a folder\n"
      "\n"
      "Methods\n";
  for (const CalibrationMethod& method : calibration_methods()) {
    const std::string name(method.name);
    text += "  " + name + std::string(name.size() < 10 ? 10 - name.size() : 1, ' ') +
            std::string(method.help) + "\n";
  }
  text +=
      "\n"
      "razor looks at attention and needs one pass over some ten thousand tokens. measured asks\n"
      "the model: it compresses one head after another, always the one that changes the answers\n"
      "least, and so also finds heads that work without looking like it. It takes longer, and it\n"
      "finds better heads where the two differ.\n"
      "\n"
      "duo and moa differentiate: they need several passes forward and back over whole texts in\n"
      "fp32, on the CPU or a GPU, which has to hold some megabytes a token beside the weights.\n"
      "Give them shorter texts (--max-tokens) where time or memory is short.\n"
      "\n"
      "A calibration that was stopped goes on from FILE.partial when the same command is given\n"
      "again. The table keeps every score and the whole ranking: serve --retrieval-ratio keeps\n"
      "more heads or fewer without calibrating again.\n"
      "\n"
      "Examples\n"
      "  headwater calibrate model.gguf --method razor --output razor.json --plot razor.svg\n"
      "  headwater calibrate model.gguf --output heads.json --budget 0.4 --budget-tokens 32768\n"
      "  headwater calibrate model.gguf --output heads.json --prompts my-questions.jsonl\n";
  return text +
         format_options(table,
                        {{"What to do", {"method", "output", "published", "plot", "seed"}},
                         {"Razor", {"block-tokens", "repeats", "induction", "echo"}},
                         {"Measured",
                          {"heads",
                           "budget",
                           "budget-tokens",
                           "num-prompts",
                           "min-tokens",
                           "max-tokens",
                           "window",
                           "question-tokens",
                           "prompts"}},
                         {"Duo", {"duo-data", "duo-steps", "duo-rate", "duo-press"}},
                         {"MoA", {"density", "moa-rules", "alpha-step", "moa-group", "moa-rows"}},
                         {"Where to run", {"device", "threads"}}});
}

}  // namespace headwater::cli
