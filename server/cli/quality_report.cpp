#include "server/cli/quality_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>

namespace headwater::cli {
namespace {

constexpr const char* kWayNames[kNumWays] = {"dense", "served", "after"};
constexpr double kTooHard = 0.2;  // a dense recall below it proves nothing

// Means of what `value` gives for the answers that `wanted` picks.
PerWay<std::optional<double>> means(
    const std::vector<AnswerRecord>& answers,
    const std::function<bool(const AnswerRecord&)>& wanted,
    const std::function<double(const AnswerRecord&, size_t)>& value) {
  PerWay<std::optional<double>> result;
  for (size_t way = 0; way < kNumWays; ++way) {
    double sum = 0, count = 0;
    for (const AnswerRecord& answer : answers) {
      if (!wanted(answer)) continue;
      sum += value(answer, way);
      ++count;
    }
    if (count > 0) result[way] = sum / count;
  }
  return result;
}

double percent_recall(const AnswerRecord& answer, size_t way) { return 100 * answer.recalls[way]; }

std::vector<std::string> tasks_of(const std::vector<AnswerRecord>& answers) {
  std::vector<std::string> tasks;  // in the order of the run
  for (const AnswerRecord& answer : answers)
    if (std::find(tasks.begin(), tasks.end(), answer.task) == tasks.end())
      tasks.push_back(answer.task);
  return tasks;
}

std::string at_tokens(const char* what, int64_t length) {
  return what + (" at " + std::to_string(length)) + " tokens";
}

double token_kl(const std::map<std::string, double>& a, const std::map<std::string, double>& b) {
  double kl = 0, rest_a = 1, rest_b = 1;
  for (const auto& [token, logprob] : a) {
    const auto other = b.find(token);
    if (other == b.end()) continue;
    kl += std::exp(logprob) * (logprob - other->second);
    rest_a -= std::exp(logprob);
    rest_b -= std::exp(other->second);
  }
  constexpr double kNone = 1e-9;  // rounding of the server's floats
  if (rest_a > kNone) kl += rest_a * std::log(rest_a / std::max(rest_b, kNone));
  return std::max(kl, 0.0);
}

const std::string& likeliest(const std::map<std::string, double>& top) {
  return std::max_element(top.begin(),
                          top.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

}  // namespace

Divergence divergence_of(const std::vector<ForcedText>& a, const std::vector<ForcedText>& b) {
  Divergence sum;
  double count = 0;
  for (size_t t = 0; t < std::min(a.size(), b.size()); ++t) {
    for (size_t i = 0; i < std::min(a[t].logprobs.size(), b[t].logprobs.size()); ++i) {
      ++count;
      sum.abs_delta_logprob += std::abs(a[t].logprobs[i] - b[t].logprobs[i]);
      if (a[t].tops[i].empty() || b[t].tops[i].empty()) continue;
      sum.kl += token_kl(a[t].tops[i], b[t].tops[i]);
      sum.top1_agreement += likeliest(a[t].tops[i]) == likeliest(b[t].tops[i]) ? 1 : 0;
    }
  }
  if (count == 0) return sum;
  return {sum.kl / count, sum.abs_delta_logprob / count, sum.top1_agreement / count};
}

double loss_of(const std::vector<ForcedText>& texts) {
  double sum = 0, count = 0;
  for (const ForcedText& text : texts) {
    for (const double logprob : text.logprobs) sum -= logprob;
    count += static_cast<double>(text.logprobs.size());
  }
  return count > 0 ? sum / count : 0;
}

QualitySection recall_section(const std::vector<AnswerRecord>& answers, int64_t length) {
  QualitySection section{at_tokens("Recall, %,", length), {}};
  const auto of_length = [&](const AnswerRecord& answer) { return answer.length == length; };
  for (const std::string& task : tasks_of(answers)) {
    const auto of_task = [&](const AnswerRecord& a) { return of_length(a) && a.task == task; };
    section.rows.push_back({task, means(answers, of_task, percent_recall), 1});
  }
  section.rows.push_back({"mean", means(answers, of_length, percent_recall), 1});
  constexpr int kDepths = 3;
  constexpr const char* kDepthNames[kDepths] = {
      "  in the first third", "  in the second third", "  in the last third"};
  for (int depth = 0; depth < kDepths; ++depth) {
    const auto there = [&](const AnswerRecord& a) {
      return of_length(a) && std::min(static_cast<int>(a.depth * kDepths), kDepths - 1) == depth;
    };
    if (std::any_of(answers.begin(), answers.end(), there))
      section.rows.push_back({kDepthNames[depth], means(answers, there, percent_recall), 1});
  }
  QualityRow same{"same text as dense, %",
                  means(answers,
                        of_length,
                        [](const AnswerRecord& answer, size_t way) {
                          return answer.texts[way] == answer.texts[0] ? 100.0 : 0.0;
                        }),
                  1};
  same.values[0].reset();
  section.rows.push_back(same);
  section.rows.push_back({"tokens of an answer",
                          means(answers,
                                of_length,
                                [](const AnswerRecord& answer, size_t way) {
                                  return static_cast<double>(answer.output_tokens[way]);
                                }),
                          1});
  return section;
}

QualitySection bytes_section(const std::vector<AnswerRecord>& answers) {
  QualitySection section{"KV bytes of a request, MB", {}};
  std::map<int64_t, std::array<double, 3>> sums;  // dense, held, requests
  for (const AnswerRecord& answer : answers) {
    auto& [dense, held, count] = sums[answer.length];
    dense += static_cast<double>(answer.kv_bytes_dense);
    held += static_cast<double>(answer.kv_bytes);
    ++count;
  }
  for (const auto& [length, sum] : sums) {
    const auto& [dense, held, count] = sum;
    section.rows.push_back(
        {at_tokens("held", length), {dense / count / 1e6, held / count / 1e6}, 2});
  }
  return section;
}

QualitySection forced_section(const PerWay<std::vector<ForcedText>>& texts, int64_t length) {
  QualityRow loss{"loss, nats", {}, 4};
  QualityRow kl{"KL from dense, at least, nats", {}, 5};
  QualityRow delta{"mean |delta log p|", {}, 5};
  QualityRow top1{"same likeliest token, %", {}, 2};
  for (size_t way = 0; way < kNumWays; ++way) {
    loss.values[way] = loss_of(texts[way]);
    if (way == 0) continue;
    const Divergence d = divergence_of(texts[0], texts[way]);
    kl.values[way] = d.kl;
    delta.values[way] = d.abs_delta_logprob;
    top1.values[way] = 100 * d.top1_agreement;
  }
  return {at_tokens("Forced text", length), {loss, kl, delta, top1}};
}

QualitySection repeat_section(const PerWay<std::vector<ForcedText>>& copies, int64_t length) {
  QualityRow loss{"loss on the second copy, nats", {}, 4};
  QualityRow above{"above dense, %", {}, 2};
  for (size_t way = 0; way < kNumWays; ++way) {
    loss.values[way] = loss_of(copies[way]);
    if (way > 0)
      above.values[way] = 100 * (*loss.values[way] / std::max(*loss.values[0], 1e-6) - 1);
  }
  return {at_tokens("Random block, twice,", length), {loss, above}};
}

std::vector<std::string> quality_notes(const std::vector<AnswerRecord>& answers) {
  std::vector<std::string> notes;
  const auto dropped = [](const AnswerRecord& a) { return a.kv_bytes < a.kv_bytes_dense; };
  if (std::none_of(answers.begin(), answers.end(), dropped))
    notes.push_back(
        "The server dropped nothing at these lengths, so this is no test of its policy: raise "
        "--quality-lengths.");
  std::string hard;
  for (const std::string& task : tasks_of(answers)) {
    const auto mean = means(
        answers, [&](const AnswerRecord& a) { return a.task == task; }, percent_recall)[0];
    if (*mean < 100 * kTooHard) hard += (hard.empty() ? "" : ", ") + task;
  }
  if (!hard.empty())
    notes.push_back("Too hard for this model when dense, so they say nothing: " + hard + ".");
  notes.push_back(
      "dense: every head keeps everything. served: as a request that asks for nothing. after: the "
      "context is compressed before the question, the forced text or the second copy "
      "(attention.faithful_tokens). Where prompts are prefilled faithfully they see everything, so "
      "that served shows a loss in answers only.");
  return notes;
}

std::string format_quality(const std::vector<QualitySection>& sections,
                           const std::vector<std::string>& notes) {
  constexpr size_t kWidth = 66;
  std::string title = " Quality ";
  title.insert(0, (kWidth - title.size()) / 2, '=');
  std::string out = title + std::string(kWidth - title.size(), '=') + "\n";
  char line[128];
  for (const QualitySection& section : sections) {
    std::snprintf(line, sizeof line, "%-36s", section.title.c_str());
    out += line;
    for (const char* name : kWayNames) {
      std::snprintf(line, sizeof line, "%10s", name);
      out += line;
    }
    out += "\n";
    for (const QualityRow& row : section.rows) {
      std::snprintf(line, sizeof line, "  %-34s", row.name.c_str());
      out += line;
      for (const std::optional<double>& value : row.values) {
        if (value) {
          std::snprintf(line, sizeof line, "%10.*f", row.precision, *value);
        } else {
          std::snprintf(line, sizeof line, "%10s", "-");
        }
        out += line;
      }
      out += "\n";
    }
  }
  for (const std::string& note : notes) out += note + "\n";
  return out + std::string(kWidth, '=') + "\n";
}

nlohmann::ordered_json quality_json(const std::vector<QualitySection>& sections,
                                    const std::vector<std::string>& notes,
                                    const std::vector<AnswerRecord>& answers) {
  nlohmann::ordered_json json;
  json["sections"] = nlohmann::ordered_json::array();
  for (const QualitySection& section : sections) {
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const QualityRow& row : section.rows) {
      nlohmann::ordered_json entry = {{"name", row.name}};
      for (size_t way = 0; way < kNumWays; ++way) {
        entry[kWayNames[way]] = nullptr;
        if (row.values[way]) entry[kWayNames[way]] = *row.values[way];
      }
      rows.push_back(entry);
    }
    json["sections"].push_back({{"title", section.title}, {"rows", rows}});
  }
  json["notes"] = notes;
  json["answers"] = nlohmann::ordered_json::array();
  for (const AnswerRecord& answer : answers) {
    nlohmann::ordered_json entry = {{"task", answer.task},
                                    {"length", answer.length},
                                    {"depth", answer.depth},
                                    {"expected", answer.expected},
                                    {"kv_bytes", answer.kv_bytes},
                                    {"kv_bytes_dense", answer.kv_bytes_dense}};
    for (size_t way = 0; way < kNumWays; ++way)
      entry[kWayNames[way]] = {{"text", answer.texts[way]},
                               {"recall", answer.recalls[way]},
                               {"tokens", answer.output_tokens[way]}};
    json["answers"].push_back(entry);
  }
  return json;
}

}  // namespace headwater::cli
