// head_eval: what a model answers if its heads keep by a head table, by random sets of as many
// heads, and by all but the table's; one prefill per prompt serves them all (engine/calibrate
// Probe). Writes JSON lines that head_report.py merges into tables; started again with the same
// --output it goes on where it ended.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <span>
#include <sstream>
#include <thread>

#include "engine/attention/policy_table.h"
#include "engine/calibrate/probe.h"
#include "engine/config/engine_config.h"
#include "engine/model/loaded_model.h"
#include "kernels/base/status.h"
#include "server/cli/quality_tasks.h"
#include "server/config/option_table.h"
#include "tests/quality/head_variants.h"

using namespace headwater;           // NOLINT: a program
using namespace headwater::quality;  // NOLINT: likewise

namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

constexpr int32_t kChunkRows = 512;
constexpr const char* kQuestion = "\nQuestion:";

struct Options {
  EngineConfig engine;  // attention, window-*, threads, model
  std::string tables;
  std::string set;
  std::string lengths = "2048";
  std::string tasks;
  std::string shard = "0/1";
  std::string output = "head_eval.jsonl";
  std::string export_to;
  int64_t n = 10;
  int32_t num_random = 20;
  int32_t max_tokens = 128;
  int64_t repeat_block = 0;
  bool question_after = false;
  uint64_t seed = 1;
};

void describe(Options& o, OptionTable& visit) {
  visit("model", o.engine.model, "GGUF file or Hugging Face folder");
  visit("threads", o.engine.threads, "CPU threads; 0 = one per core");
  visit("attention", o.engine.attention, "policy whose compressed heads the tables' are");
  visit("window-sinks", o.engine.window_sinks, "of compressed heads; default: the policy's");
  visit("window-recent", o.engine.window_recent, "likewise");
  visit("window-growth", o.engine.window_growth, "likewise");
  visit("window-block", o.engine.window_block, "likewise");
  visit("tables", o.tables, "head tables to compare: NAME=FILE,NAME=FILE,...");
  visit("random", o.num_random, "random sets of heads per table");
  visit("set",
        o.set,
        "JSON lines with task, length, depth, prompt, answer or expected; default: generated");
  visit("lengths", o.lengths, "of the prompts, in tokens");
  visit("tasks", o.tasks, "names; default: all");
  visit("n", o.n, "prompts per task and length");
  visit("shard", o.shard, "I/N: every N-th prompt from the I-th on");
  visit("max-tokens", o.max_tokens, "of an answer");
  visit("question-after", o.question_after, "compress the context before the question is read");
  visit("repeat-block",
        o.repeat_block,
        "instead of questions: loss on the second copy of random blocks of so many tokens");
  visit("seed", o.seed, "of random sets and generated prompts");
  visit("output", o.output, "JSON lines; prompts that are in it are not run again");
  visit("export", o.export_to, "write the generated prompts as a --set there and end");
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::string part;
  std::istringstream in(text);
  while (std::getline(in, part, separator))
    if (!part.empty()) parts.push_back(part);
  return parts;
}

// One prompt of the run.
struct Case {
  std::string task;
  int64_t length = 0;
  int64_t index = 0;  // among those of the task and length
  double depth = 0;
  std::string context, question;
  std::vector<std::string> expected;
  bool exact = false;  // the whole answer, else what it holds
  std::string key() const {
    return task + " " + std::to_string(length) + " " + std::to_string(index);
  }
};

bool wanted(const std::vector<std::string>& tasks, const std::string& task) {
  return tasks.empty() || std::find(tasks.begin(), tasks.end(), task) != tasks.end();
}

std::vector<Case> read_set(const Options& o, const std::vector<int64_t>& lengths) {
  std::ifstream file(o.set);
  if (!file) throw ConfigError("--set: cannot read " + o.set + " (zcat it if it ends in .gz)");
  std::map<std::pair<std::string, int64_t>, int64_t> counts;
  std::vector<Case> cases;
  for (std::string line; std::getline(file, line);) {
    const Json entry = Json::parse(line, nullptr, false);
    if (!entry.is_object()) throw ConfigError("--set: " + o.set + " has a line that is no JSON");
    Case c;
    c.task = entry.at("task").get<std::string>();
    c.length = entry.at("length").get<int64_t>();
    c.depth = entry.at("depth").get<double>();
    if (std::find(lengths.begin(), lengths.end(), c.length) == lengths.end()) continue;
    if (!wanted(split(o.tasks, ','), c.task)) continue;
    c.index = counts[{c.task, c.length}]++;
    if (c.index >= o.n) continue;
    const auto prompt = entry.at("prompt").get<std::string>();
    const size_t question = prompt.rfind(kQuestion);
    c.context = prompt.substr(0, question);
    if (question != std::string::npos) c.question = prompt.substr(question);
    c.exact = !entry.contains("expected");
    c.expected = c.exact ? std::vector<std::string>{entry.at("answer").get<std::string>()}
                         : entry["expected"].get<std::vector<std::string>>();
    cases.push_back(std::move(c));
  }
  return cases;
}

std::vector<Case> generate(const Options& o,
                           const std::vector<int64_t>& lengths,
                           const Tokenizer& tokenizer) {
  std::vector<Case> cases;
  for (const int64_t length : lengths) {
    for (const cli::QualityTask& task : cli::quality_tasks()) {
      if (!wanted(split(o.tasks, ','), std::string(task.name))) continue;
      const cli::QualityPrompt sample = task.make(2 * length, 0.5, o.seed);
      const double chars_per_token =
          static_cast<double>(sample.context.size()) /
          static_cast<double>(tokenizer.encode(sample.context, true, false).size());
      for (int64_t i = 0; i < o.n; ++i) {
        const double depth = (static_cast<double>(i) + 0.5) / static_cast<double>(o.n);
        const auto chars =
            static_cast<int64_t>(static_cast<double>(length - o.max_tokens) * chars_per_token);
        cli::QualityPrompt prompt =
            task.make(chars, depth, o.seed * 1'000'003 + cases.size() * 7919);
        cases.push_back({std::string(task.name),
                         length,
                         i,
                         depth,
                         std::move(prompt.context),
                         std::move(prompt.question),
                         std::move(prompt.expected),
                         false});
      }
    }
  }
  return cases;
}

void export_cases(const std::string& path, const std::vector<Case>& cases) {
  std::ofstream file(path);
  for (const Case& c : cases)
    file << Json{{"task", c.task},
                 {"length", c.length},
                 {"depth", c.depth},
                 {"prompt", c.context + c.question},
                 {"expected", c.expected}}
                .dump()
         << "\n";
  if (!file.flush()) throw ConfigError("--export: cannot write " + path);
}

std::vector<Case> repeated_blocks(const Options& o) {
  std::vector<Case> cases;
  for (int64_t i = 0; i < o.n; ++i) {
    Case c;
    c.task = "repeated_block";
    c.length = 2 * o.repeat_block;
    c.index = i;
    cases.push_back(c);
  }
  return cases;
}

class Evaluation {
 public:
  explicit Evaluation(const Options& o)
      : options_(o),
        files_(load_model(o.engine.model)),
        tokenizer_(make_tokenizer(files_->vocabulary)),
        pool_(o.engine.threads > 0 ? o.engine.threads : default_threads()),
        ops_(make_cpu_ops(pool_)),
        model_(*files_, *ops_, {kChunkRows, kChunkRows}),
        probe_(model_, *ops_) {
    for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id)
      if (tokenizer_->token_bytes(id, false).find('\n') != std::string::npos)
        stop_ids_.push_back(id);
    const Ids& eog = tokenizer_->eog_ids();
    stop_ids_.insert(stop_ids_.end(), eog.begin(), eog.end());
    stop_ids_.insert(stop_ids_.end(), files_->eos_token_ids.begin(), files_->eos_token_ids.end());
    for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id)
      if (!tokenizer_->is_control(id) && !tokenizer_->token_bytes(id, false).empty())
        ordinary_ids_.push_back(id);

    variants_.push_back(dense_variant(static_cast<size_t>(probe_.num_heads())));
    for (const std::string& entry : split(o.tables, ',')) {
      const size_t equals = entry.find('=');
      if (equals == std::string::npos)
        throw ConfigError("--tables: must be NAME=FILE,NAME=FILE,..., got \"" + entry + "\"");
      EngineConfig config = o.engine;
      config.head_table = entry.substr(equals + 1);
      const auto variants = table_variants(
          entry.substr(0, equals), plan_attention(config, *files_).rules, o.num_random, o.seed);
      variants_.insert(variants_.end(), variants.begin(), variants.end());
    }
  }

  const Tokenizer& tokenizer() const { return *tokenizer_; }

  Json header(const std::vector<int64_t>& lengths) const {
    const HeadShape& heads = files_->spec.layers[0].heads;
    const PageShape page{ops_->default_kv_format(), heads.head_dim, 16, 0};
    Json json = {{"model", files_->name},
                 {"attention", options_.engine.attention},
                 {"question_after", options_.question_after}};
    for (const HeadVariant& variant : variants_)
      json["variants"].push_back(
          variant_json(variant, static_cast<int32_t>(files_->spec.layers.size()), page, lengths));
    return json;
  }

  // {"task", "length", ..., "scores": {variant: share of right or nats}}
  Json run(const Case& c) {
    const auto begin = std::chrono::steady_clock::now();
    Json line = {{"task", c.task}, {"length", c.length}, {"index", c.index}, {"depth", c.depth}};
    line["scores"] = Json::object();
    if (options_.repeat_block > 0) {
      repeat(c, line);
    } else {
      answer(c, line);
    }
    line["seconds"] =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return line;
  }

 private:
  static int32_t default_threads() {
    return static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  }

  std::string text_of(const Ids& ids) const {
    std::string text;
    for (const int32_t id : ids) text += tokenizer_->token_bytes(id, false);
    const size_t begin = text.find_first_not_of(' ');
    if (begin == std::string::npos) return "";
    return text.substr(begin, text.find_last_not_of(' ') + 1 - begin);
  }

  void answer(const Case& c, Json& line) {
    Ids read = tokenizer_->encode(c.context, true, false);
    Ids question = tokenizer_->encode(c.question, false, false);
    if (!options_.question_after) {
      read.insert(read.end(), question.begin(), question.end());
      question.clear();
    }
    ProbePrompt prompt =
        probe_.read(read, static_cast<int32_t>(question.size()) + options_.max_tokens);
    line["prompt_tokens"] = read.size() + question.size();
    for (const HeadVariant& variant : variants_) {
      const std::string text =
          text_of(probe_.greedy(prompt, variant.rules, options_.max_tokens, stop_ids_, question));
      const double score =
          c.exact ? (text == c.expected[0] ? 1.0 : 0.0) : cli::recall_of(c.expected, text);
      line["scores"][variant.name] = score;
      if (variant.kind == VariantKind::kDense || variant.kind == VariantKind::kTable)
        line["answers"][variant.name] = text;
    }
  }

  void repeat(const Case& c, Json& line) {
    std::mt19937_64 random(options_.seed * 1'000'003 + static_cast<uint64_t>(c.index));
    Ids block;
    for (int64_t i = 0; i < options_.repeat_block; ++i)
      block.push_back(ordinary_ids_[random() % ordinary_ids_.size()]);
    Ids read = block;
    if (tokenizer_->adds_bos()) read.insert(read.begin(), tokenizer_->bos());
    ProbePrompt prompt = probe_.read(read, static_cast<int32_t>(block.size()));
    const auto vocab = static_cast<size_t>(probe_.vocab_size());
    for (const HeadVariant& variant : variants_) {
      const std::vector<float> logits = probe_.logits(prompt, variant.rules, block);
      double loss = 0;
      for (size_t i = 1; i < block.size(); ++i) {
        const std::span<const float> row(logits.data() + (i - 1) * vocab, vocab);
        const float top = *std::max_element(row.begin(), row.end());
        double sum = 0;
        for (const float logit : row) sum += std::exp(logit - top);
        loss += std::log(sum) - (row[static_cast<size_t>(block[i])] - top);
      }
      line["scores"][variant.name] = loss / static_cast<double>(block.size() - 1);
    }
  }

  const Options& options_;
  std::unique_ptr<LoadedModel> files_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  Model model_;
  Probe probe_;
  Ids stop_ids_, ordinary_ids_;
  std::vector<HeadVariant> variants_;
};

std::set<std::string> done_cases(const std::string& path) {
  std::set<std::string> keys;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Json entry = Json::parse(line, nullptr, false);  // the last one may be cut off
    if (!entry.is_object() || !entry.contains("scores")) continue;
    keys.insert(entry["task"].get<std::string>() + " " + entry["length"].dump() + " " +
                entry["index"].dump());
  }
  return keys;
}

int run(const std::vector<std::string>& args) {
  Options options;
  OptionTable table;
  options.engine.attention = "razor";
  describe(options, table);
  if (wants_help(args)) {
    std::vector<std::string> names;
    for (const Option& option : table.options()) names.push_back(option.name);
    std::cout << "Exact answers under head tables and random sets of heads.\n"
              << format_options(table, {{"Options", names}});
    return 0;
  }
  apply_flags(table, args);
  int64_t shard = 0, num_shards = 0;
  if (std::sscanf(options.shard.c_str(), "%ld/%ld", &shard, &num_shards) != 2 || shard < 0 ||
      shard >= num_shards)
    throw ConfigError("--shard: must be I/N with I below N, got \"" + options.shard + "\"");
  std::vector<int64_t> lengths;
  for (const std::string& length : split(options.lengths, ','))
    lengths.push_back(std::stol(length));
  if (options.repeat_block > 0) lengths = {2 * options.repeat_block};

  Evaluation evaluation(options);
  const std::vector<Case> cases = options.repeat_block > 0 ? repeated_blocks(options)
                                  : options.set.empty()
                                      ? generate(options, lengths, evaluation.tokenizer())
                                      : read_set(options, lengths);
  if (!options.export_to.empty()) {
    export_cases(options.export_to, cases);
    return 0;
  }
  const std::set<std::string> done = done_cases(options.output);
  std::vector<const Case*> todo;
  for (size_t i = 0; i < cases.size(); ++i)
    if (static_cast<int64_t>(i) % num_shards == shard && !done.contains(cases[i].key()))
      todo.push_back(&cases[i]);
  std::ofstream out(options.output, std::ios::app);
  out << evaluation.header(lengths).dump() << std::endl;
  const auto begin = std::chrono::steady_clock::now();
  for (size_t i = 0; i < todo.size(); ++i) {
    const Json line = evaluation.run(*todo[i]);
    out << line.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
    const double elapsed =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const double each = elapsed / static_cast<double>(i + 1);
    std::fprintf(stderr,
                 "%zu/%zu %s, %.1f s each, %.0f s to go\n",
                 i + 1,
                 todo.size(),
                 todo[i]->key().c_str(),
                 each,
                 each * static_cast<double>(todo.size() - i - 1));
  }
  if (!out.flush()) throw ConfigError("--output: cannot write " + options.output);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const ConfigError& e) {
    std::cerr << "head_eval: " << e.what() << "\n";
    return 2;
  } catch (const std::exception& e) {
    std::cerr << "head_eval: " << e.what() << "\n";
    return 1;
  }
}
