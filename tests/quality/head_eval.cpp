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
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <span>
#include <thread>

#include "engine/attention/policy_table.h"
#include "engine/calibrate/probe.h"
#include "engine/config/engine_config.h"
#include "engine/model/loaded_model.h"
#include "kernels/base/status.h"
#include "kernels/make_ops.h"
#include "server/cli/quality_tasks.h"
#include "server/config/option_table.h"
#include "tests/quality/head_cases.h"
#include "tests/quality/head_variants.h"

using namespace headwater;           // NOLINT: a program
using namespace headwater::quality;  // NOLINT: likewise

namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

constexpr int32_t kChunkRows = 512;

struct Options {
  EngineConfig engine;  // attention, window-*, threads, model
  CaseSource cases;
  std::string tables;
  std::string shard = "0/1";
  std::string output = "head_eval.jsonl";
  std::string export_to;
  int32_t num_random = 20;
  bool question_after = false;
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
        o.cases.set,
        "JSON lines with task, length, depth, prompt, answer or expected; default: generated");
  visit("lengths", o.cases.lengths, "of the prompts, in tokens");
  visit("tasks", o.cases.tasks, "names; default: all");
  visit("n", o.cases.n, "prompts per task and length");
  visit("shard", o.shard, "I/N: every N-th prompt from the I-th on");
  visit("max-tokens", o.cases.max_tokens, "of an answer");
  visit("question-after", o.question_after, "compress the context before the question is read");
  visit("repeat-block",
        o.cases.repeat_block,
        "instead of questions: loss on the second copy of random blocks of so many tokens");
  visit("text",
        o.cases.text,
        "instead of questions: next-token distribution on this file beside dense; a prompt is "
        "--lengths tokens of it, the last --max-tokens of them are judged");
  visit("device", o.engine.device, "auto, cuda, cpu or ref");
  visit("seed", o.cases.seed, "of random sets and generated prompts");
  visit("output", o.output, "JSON lines; prompts that are in it are not run again");
  visit("export", o.export_to, "write the generated prompts as a --set there and end");
}

// Log-probabilities of a row of logits.
std::vector<double> log_softmax(std::span<const float> row) {
  const float top = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float logit : row) sum += std::exp(logit - top);
  const double log_sum = std::log(sum) + top;
  std::vector<double> result;
  result.reserve(row.size());
  for (const float logit : row) result.push_back(logit - log_sum);
  return result;
}

class Evaluation {
 public:
  explicit Evaluation(const Options& o)
      : options_(o),
        files_(load_model(o.engine.model)),
        tokenizer_(make_tokenizer(files_->vocabulary)),
        pool_(o.engine.threads > 0 ? o.engine.threads : default_threads()),
        ops_(make_ops(o.engine.device, pool_)),
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
      const auto variants = table_variants(entry.substr(0, equals),
                                           plan_attention(config, *files_).rules,
                                           o.num_random,
                                           o.cases.seed);
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

  // {"task", "length", ..., "scores": {variant: share of right or nats}}, one or two of them
  std::vector<Json> run(const Case& c) {
    const auto begin = std::chrono::steady_clock::now();
    Json line = {{"task", c.task}, {"length", c.length}, {"index", c.index}, {"depth", c.depth}};
    line["scores"] = Json::object();
    std::vector<Json> lines = {line};
    if (options_.cases.repeat_block > 0) {
      repeat(c, lines[0]);
    } else if (!c.ids.empty()) {
      line["task"] = kTextTop1;
      lines.push_back(line);
      compare(c, lines[0], lines[1]);
    } else {
      answer(c, lines[0]);
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    for (Json& each : lines) each["seconds"] = seconds;
    return lines;
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
        probe_.read(read, static_cast<int32_t>(question.size()) + options_.cases.max_tokens);
    line["prompt_tokens"] = read.size() + question.size();
    for (const HeadVariant& variant : variants_) {
      const std::string text = text_of(
          probe_.greedy(prompt, variant.rules, options_.cases.max_tokens, stop_ids_, question));
      const double score =
          c.exact ? (text == c.expected[0] ? 1.0 : 0.0) : cli::recall_of(c.expected, text);
      line["scores"][variant.name] = score;
      if (variant.kind == VariantKind::kDense || variant.kind == VariantKind::kTable)
        line["answers"][variant.name] = text;
    }
  }

  void repeat(const Case& c, Json& line) {
    std::mt19937_64 random(options_.cases.seed * 1'000'003 + static_cast<uint64_t>(c.index));
    Ids block;
    for (int64_t i = 0; i < options_.cases.repeat_block; ++i)
      block.push_back(ordinary_ids_[random() % ordinary_ids_.size()]);
    Ids read = block;
    if (tokenizer_->adds_bos()) read.insert(read.begin(), tokenizer_->bos());
    ProbePrompt prompt = probe_.read(read, static_cast<int32_t>(block.size()));
    const auto vocab = static_cast<size_t>(probe_.vocab_size());
    for (const HeadVariant& variant : variants_) {
      const std::vector<float> logits = probe_.logits(prompt, variant.rules, block);
      double loss = 0;
      for (size_t i = 1; i < block.size(); ++i)
        loss -= log_softmax(
            std::span(logits).subspan((i - 1) * vocab, vocab))[static_cast<size_t>(block[i])];
      line["scores"][variant.name] = loss / static_cast<double>(block.size() - 1);
    }
  }

  void compare(const Case& c, Json& kl, Json& top1) {
    const auto judged = static_cast<size_t>(options_.cases.max_tokens);
    const std::span<const int32_t> ids = c.ids;
    ProbePrompt prompt = probe_.read(ids.first(ids.size() - judged), options_.cases.max_tokens);
    const auto vocab = static_cast<size_t>(probe_.vocab_size());
    std::vector<std::vector<double>> dense;
    for (const HeadVariant& variant : variants_) {
      const std::vector<float> logits = probe_.logits(prompt, variant.rules, ids.last(judged));
      double divergence = 0, agreeing = 0;
      for (size_t i = 0; i < judged; ++i) {
        std::vector<double> row = log_softmax(std::span(logits).subspan(i * vocab, vocab));
        if (variant.kind == VariantKind::kDense) dense.push_back(row);
        const std::vector<double>& p = dense[i];
        for (size_t id = 0; id < vocab; ++id) divergence += std::exp(p[id]) * (p[id] - row[id]);
        const auto best = [](const std::vector<double>& v) {
          return std::max_element(v.begin(), v.end()) - v.begin();
        };
        agreeing += best(p) == best(row) ? 1 : 0;
      }
      kl["scores"][variant.name] = divergence / static_cast<double>(judged);
      top1["scores"][variant.name] = agreeing / static_cast<double>(judged);
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
  const std::vector<int64_t> lengths = options.cases.length_list();

  Evaluation evaluation(options);
  const std::vector<Case> cases = make_cases(options.cases, evaluation.tokenizer());
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
    for (const Json& line : evaluation.run(*todo[i]))
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
