#include "server/cli/bench_quality.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <charconv>
#include <chrono>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <stdexcept>

#include "engine/config/config_issues.h"
#include "kernels/base/status.h"
#include "server/cli/quality_tasks.h"

namespace headwater::cli {
namespace {

namespace asio = boost::asio;
using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

constexpr int64_t kAnswerTokens = 64;
constexpr int64_t kForcedTokens = 256;  // of a text, at most a quarter of it
constexpr int64_t kTopLogprobs = 20;

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::string part;
  std::istringstream in(text);
  while (std::getline(in, part, ','))
    if (!part.empty()) parts.push_back(part);
  return parts;
}

std::vector<int64_t> parse_lengths(const std::string& text) {
  std::vector<int64_t> lengths;
  for (const std::string& part : split(text)) {
    int64_t length = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), length);
    if (error != std::errc() || end != part.data() + part.size() || length < 256)
      throw ConfigError(
          "--quality-lengths: must be whole numbers of tokens from 256 on, such as "
          "2048,8192, got \"" +
          part + "\"");
    lengths.push_back(length);
  }
  if (lengths.empty()) throw ConfigError("--quality-lengths: must name at least one length");
  return lengths;
}

std::vector<const QualityTask*> parse_tasks(const std::string& text) {
  std::vector<const QualityTask*> tasks;
  for (const std::string& name : split(text)) {
    tasks.push_back(find_quality_task(name));
    if (tasks.back() == nullptr)
      throw ConfigError("--quality-tasks: must be names out of " + quality_task_names() +
                        ", got \"" + name + "\"");
  }
  if (tasks.empty())
    for (const QualityTask& task : quality_tasks()) tasks.push_back(&task);
  return tasks;
}

// A prompt whose first tokens are the context.
struct Split {
  Ids ids;
  int64_t context_tokens = 0;
};

Json attention_of(Way way, const Split& prompt) {
  if (way == Way::kDense) return {{"policy", "dense"}};
  return {{"faithful_tokens", prompt.context_tokens}};
}

class QualityRun {
 public:
  QualityRun(asio::io_context& io,
             HttpClient& client,
             Caller& caller,
             const std::string& model,
             int64_t concurrency,
             uint64_t seed,
             const std::function<void(const BenchProgress&)>& progress)
      : io_(io),
        client_(client),
        caller_(caller),
        model_(model),
        concurrency_(concurrency),
        seed_(seed),
        on_progress_(progress) {}

  // How many requests run() is going to send in all.
  void expect(int64_t total) { progress_.total = total; }

  std::vector<AnswerRecord> ask(const std::vector<const QualityTask*>& tasks,
                                int64_t length,
                                int64_t num_prompts) {
    std::vector<AnswerRecord> records;
    std::vector<Json> bodies;
    for (const QualityTask* task : tasks) {
      const double chars_per_token = measure_chars_per_token(*task, length);
      for (int64_t i = 0; i < num_prompts; ++i) {
        const double depth = (static_cast<double>(i) + 0.5) / static_cast<double>(num_prompts);
        const auto chars =
            static_cast<int64_t>(static_cast<double>(length - kAnswerTokens) * chars_per_token);
        const QualityPrompt prompt = task->make(chars, depth, seed_ + records.size() * 7919);
        Split split = join(tokenize(prompt.context, true), tokenize(prompt.question, false));
        records.push_back(
            {std::string(task->name), length, depth, prompt.expected, {}, {}, {}, 0, 0});
        add_bodies(bodies, split, {{"max_tokens", kAnswerTokens}, {"stop", "\nQuestion"}});
      }
    }
    const std::vector<Json> replies = post_all(bodies);
    for (size_t i = 0; i < records.size(); ++i) {
      for (size_t way = 0; way < kNumWays; ++way) {
        const Json& reply = replies[i * kNumWays + way];
        records[i].texts[way] = reply.at("choices").at(0).at("text").get<std::string>();
        records[i].recalls[way] = recall_of(records[i].expected, records[i].texts[way]);
        const Json& usage = reply.at("usage");
        records[i].output_tokens[way] = usage.at("completion_tokens").get<int64_t>();
        if (static_cast<Way>(way) != Way::kServed) continue;
        records[i].kv_bytes = usage.at("kv_bytes").get<int64_t>();
        records[i].kv_bytes_dense = usage.at("kv_bytes_dense").get<int64_t>();
      }
    }
    return records;
  }

  PerWay<std::vector<ForcedText>> force(const std::vector<Split>& texts, int64_t num_top) {
    std::vector<Json> bodies;
    for (const Split& text : texts)
      add_bodies(bodies, text, {{"max_tokens", 1}, {"echo", true}, {"logprobs", num_top}});
    const std::vector<Json> replies = post_all(bodies);
    PerWay<std::vector<ForcedText>> forced;
    for (size_t i = 0; i < replies.size(); ++i)
      forced[i % kNumWays].push_back(forced_text(replies[i], texts[i / kNumWays]));
    return forced;
  }

  // Pieces of the text, or of generated sentences if it is empty.
  std::vector<Split> forced_texts(const Ids& text, int64_t length, int64_t count) {
    std::vector<Split> pieces;
    const auto size = static_cast<size_t>(length);
    for (int64_t i = 0; i < count; ++i) {
      Split piece;
      if (text.empty()) {
        const auto seed = seed_ + static_cast<uint64_t>(i) + 1;
        piece.ids = tokenize(filler_text(length * 8, seed), true);
      } else {
        const size_t begin = static_cast<size_t>(i) * size;
        if (begin + size > text.size()) break;
        piece.ids.assign(text.begin() + static_cast<std::ptrdiff_t>(begin), text.end());
      }
      piece.ids.resize(std::min(piece.ids.size(), size));
      const auto tokens = static_cast<int64_t>(piece.ids.size());
      piece.context_tokens = tokens - std::min(kForcedTokens, tokens / 4);
      pieces.push_back(std::move(piece));
    }
    return pieces;
  }

  std::vector<Split> repeated_blocks(int64_t length, int64_t count) {
    const Ids vocabulary = ordinary_ids(caller_, model_);
    std::mt19937_64 random(seed_);
    std::vector<Split> prompts(static_cast<size_t>(count));
    for (Split& prompt : prompts) {
      prompt.context_tokens = length / 2;
      for (int64_t i = 0; i < length / 2; ++i)
        prompt.ids.push_back(vocabulary[random() % vocabulary.size()]);
      const Ids block = prompt.ids;
      prompt.ids.insert(prompt.ids.end(), block.begin(), block.end());
    }
    return prompts;
  }

  Ids tokenize(const std::string& text, bool add_special) {
    const Json body = {{"model", model_}, {"prompt", text}, {"add_special_tokens", add_special}};
    return caller_.call_json("/tokenize", body.dump()).at("tokens").get<Ids>();
  }

 private:
  static Split join(Ids context, const Ids& tail) {
    Split split{std::move(context), 0};
    split.context_tokens = static_cast<int64_t>(split.ids.size());
    split.ids.insert(split.ids.end(), tail.begin(), tail.end());
    return split;
  }

  double measure_chars_per_token(const QualityTask& task, int64_t length) {
    const QualityPrompt sample = task.make(2 * length, 0.5, seed_);
    const std::string text = sample.context + sample.question;
    return static_cast<double>(text.size()) / static_cast<double>(tokenize(text, true).size());
  }

  // One body per way, in their order.
  void add_bodies(std::vector<Json>& bodies, const Split& prompt, const Json& options) {
    for (size_t i = 0; i < kNumWays; ++i) {
      Json body = {{"model", model_}, {"prompt", prompt.ids}, {"temperature", 0}};
      body.update(options);
      const auto way = static_cast<Way>(i);
      if (way != Way::kServed) body["attention"] = attention_of(way, prompt);
      bodies.push_back(std::move(body));
    }
  }

  static ForcedText forced_text(const Json& reply, const Split& text) {
    const Json& lists = reply.at("choices").at(0).at("logprobs");
    const Json& logprobs = lists.at("token_logprobs");
    const Json& tops = lists.at("top_logprobs");
    if (logprobs.size() < text.ids.size() || tops.size() != logprobs.size())
      throw std::runtime_error("/v1/completions with echo and logprobs gave " +
                               std::to_string(logprobs.size()) + " log probabilities for " +
                               std::to_string(text.ids.size()) + " prompt tokens");
    ForcedText forced;
    for (auto i = static_cast<size_t>(text.context_tokens); i < text.ids.size(); ++i) {
      forced.logprobs.push_back(logprobs[i].get<double>());
      forced.tops.push_back(tops[i].get<std::map<std::string, double>>());
    }
    return forced;
  }

  // All replies, in the order of the bodies.
  std::vector<Json> post_all(const std::vector<Json>& bodies) {
    std::vector<Json> replies(bodies.size());
    std::string error;
    size_t next = 0;
    const auto work = [&]() -> asio::awaitable<void> {
      while (next < bodies.size() && error.empty()) {
        const size_t i = next++;
        ++progress_.running;
        try {
          const HttpReply reply = co_await client_.request("/v1/completions", bodies[i].dump());
          replies[i] = Json::parse(reply.body, nullptr, false);
          if (reply.status != 200)
            error = "HTTP " + std::to_string(reply.status) + ": " + reply.body.substr(0, 300);
        } catch (const boost::system::system_error& e) {
          error = e.code().message();
        }
        --progress_.running;
        ++progress_.done;
        progress_.elapsed_s =
            std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
        on_progress_(progress_);
      }
    };
    const size_t workers = concurrency_ == 0
                               ? bodies.size()
                               : std::min(bodies.size(), static_cast<size_t>(concurrency_));
    for (size_t i = 0; i < workers; ++i) asio::co_spawn(io_, work, asio::detached);
    io_.restart();
    io_.run();
    if (!error.empty()) throw std::runtime_error("a request of --quality failed: " + error);
    return replies;
  }

  asio::io_context& io_;  // not owned, as are the next two
  HttpClient& client_;
  Caller& caller_;
  const std::string model_;
  const int64_t concurrency_;
  const uint64_t seed_;
  const std::function<void(const BenchProgress&)>& on_progress_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  BenchProgress progress_;
};

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ConfigError("--quality-text: cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A server without policies would ignore the field and prove nothing.
void require_policies(Caller& caller, const std::string& model) {
  const Json body = {{"model", model}, {"prompt", "a"}, {"max_tokens", 1}};
  const Json reply = caller.call_json("/v1/completions", body.dump());
  const auto usage = reply.find("usage");
  if (usage == reply.end() || !usage->is_object() || !usage->contains("kv_bytes_dense"))
    throw std::runtime_error(
        "--quality compares attention policies, and this server has none: its usage has no "
        "kv_bytes_dense");
}

}  // namespace

std::string quality_help() {
  std::string text =
      "\nQuality (--quality): a speed from compression is never shown without what it costs. The "
      "load runs\n"
      "twice, as served and dense, and then each prompt of a battery is answered in three ways:\n"
      "  dense   every head keeps everything (\"attention\": {\"policy\": \"dense\"})\n"
      "  served  as a request that asks for nothing. A faithful prefill shows prompts everything: "
      "what a\n"
      "          policy costs is then seen in output tokens only. A streaming one drops in the "
      "prompt too\n"
      "  after   the context is compressed first (attention.faithful_tokens), and what follows it "
      "sees what\n"
      "          output sees: the question (it cannot guide what was kept), the forced text, the "
      "second copy.\n"
      "          The hardest of the three; a second question in a conversation is of this kind\n"
      "Recall is the share of the expected strings in the answer's first line, greedy. Judge a "
      "policy by its\n"
      "distance to dense, never to 100 %; with n prompts per cell one of them is 100/n points.\n"
      "Forced text: log probabilities of given tokens behind a context. KL counts the 20 "
      "likeliest tokens\n"
      "and the rest as one, which bounds it from below.\n"
      "Tasks:\n";
  for (const QualityTask& task : quality_tasks()) {
    std::string name(task.name);
    name.resize(12, ' ');
    text += "  " + name + std::string(task.help) + "\n";
  }
  return text;
}

void check_quality(const QualityConfig& config) {
  parse_lengths(config.lengths);
  parse_tasks(config.tasks);
  if (config.num_prompts < 1 || config.num_prompts > 10'000)
    throw ConfigError("--quality-prompts: must be between 1 and 10000, got " +
                      std::to_string(config.num_prompts));
  if (!config.text.empty()) read_text(config.text);
}

QualityResult run_quality(asio::io_context& io,
                          HttpClient& client,
                          Caller& caller,
                          const QualityConfig& config,
                          const std::string& model,
                          int64_t concurrency,
                          uint64_t seed,
                          const std::function<void(const BenchProgress&)>& progress) {
  const std::vector<int64_t> lengths = parse_lengths(config.lengths);
  const std::vector<const QualityTask*> tasks = parse_tasks(config.tasks);
  require_policies(caller, model);
  QualityRun run(io, client, caller, model, concurrency, seed, progress);
  const Ids text = config.text.empty() ? Ids{} : run.tokenize(read_text(config.text), true);
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  if (!config.text.empty() && std::ssize(text) < longest)
    throw ConfigError("--quality-text: has " + std::to_string(text.size()) +
                      " tokens, fewer than the " + std::to_string(longest) +
                      " of --quality-lengths");
  std::vector<std::vector<Split>> texts;
  int64_t total = 0;
  for (const int64_t length : lengths) {
    texts.push_back(run.forced_texts(text, length, config.num_prompts));
    total += static_cast<int64_t>(kNumWays) * (std::ssize(tasks) * config.num_prompts +
                                               std::ssize(texts.back()) + config.num_prompts);
  }
  run.expect(total);

  QualityResult result;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const std::vector<AnswerRecord> answers = run.ask(tasks, lengths[i], config.num_prompts);
    result.answers.insert(result.answers.end(), answers.begin(), answers.end());
    result.sections.push_back(recall_section(answers, lengths[i]));
    result.sections.push_back(forced_section(run.force(texts[i], kTopLogprobs), lengths[i]));
    const auto blocks = run.repeated_blocks(lengths[i], config.num_prompts);
    result.sections.push_back(repeat_section(run.force(blocks, 0), lengths[i]));
  }
  result.sections.push_back(bytes_section(result.answers));
  return result;
}

}  // namespace headwater::cli
