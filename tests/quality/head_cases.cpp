#include "tests/quality/head_cases.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"
#include "server/cli/quality_tasks.h"

namespace headwater::quality {
namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

constexpr const char* kQuestion = "\nQuestion:";

bool wanted(const CaseSource& o, const std::string& task) {
  const std::vector<std::string> tasks = split(o.tasks, ',');
  return tasks.empty() || std::find(tasks.begin(), tasks.end(), task) != tasks.end();
}

std::vector<Case> read_set(const CaseSource& o, const std::vector<int64_t>& lengths) {
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
    if (!wanted(o, c.task)) continue;
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

std::vector<Case> generate(const CaseSource& o,
                           const std::vector<int64_t>& lengths,
                           const Tokenizer& tokenizer) {
  std::vector<Case> cases;
  for (const int64_t length : lengths) {
    for (const cli::QualityTask& task : cli::quality_tasks()) {
      if (!wanted(o, std::string(task.name))) continue;
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
                         false,
                         {}});
      }
    }
  }
  return cases;
}

std::vector<Case> repeated_blocks(const CaseSource& o) {
  std::vector<Case> cases;
  for (int64_t i = 0; i < o.n; ++i) {
    Case c;
    c.task = kRepeatedBlock;
    c.length = 2 * o.repeat_block;
    c.index = i;
    cases.push_back(c);
  }
  return cases;
}

std::vector<Case> pieces_of_text(const CaseSource& o,
                                 const std::vector<int64_t>& lengths,
                                 const Tokenizer& tokenizer) {
  std::ifstream file(o.text, std::ios::binary);
  if (!file) throw ConfigError("--text: cannot read " + o.text);
  const std::string all{std::istreambuf_iterator<char>(file), {}};
  const Ids ids = tokenizer.encode(all, false, false);
  std::vector<Case> cases;
  for (const int64_t length : lengths) {
    const auto size = static_cast<int64_t>(ids.size());
    if (size < length || length <= o.max_tokens)
      throw ConfigError("--text: " + o.text + " has " + std::to_string(size) +
                        " tokens; --lengths must be between --max-tokens and that, got " +
                        std::to_string(length));
    const int64_t n = std::min(o.n, size / length);
    for (int64_t i = 0; i < n; ++i) {
      Case c;
      c.task = kTextKl;
      c.length = length;
      c.index = i;
      const auto begin = ids.begin() + (n == 1 ? 0 : i * (size - length) / (n - 1));
      c.ids.assign(begin, begin + length);
      cases.push_back(std::move(c));
    }
  }
  return cases;
}

}  // namespace

std::vector<int64_t> CaseSource::length_list() const {
  if (repeat_block > 0) return {2 * repeat_block};
  std::vector<int64_t> list;
  for (const std::string& length : split(lengths, ',')) list.push_back(std::stol(length));
  return list;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::string part;
  std::istringstream in(text);
  while (std::getline(in, part, separator))
    if (!part.empty()) parts.push_back(part);
  return parts;
}

std::vector<Case> make_cases(const CaseSource& source, const Tokenizer& tokenizer) {
  const std::vector<int64_t> lengths = source.length_list();
  if (source.repeat_block > 0) return repeated_blocks(source);
  if (!source.text.empty()) return pieces_of_text(source, lengths, tokenizer);
  if (!source.set.empty()) return read_set(source, lengths);
  return generate(source, lengths, tokenizer);
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

}  // namespace headwater::quality
