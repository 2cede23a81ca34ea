// quality_tasks: questions about a long text whose answers are known, made from a seed for any
// model: the tasks of RULER (arXiv 2404.06654) in plain English. Pure functions; the same seed
// gives the same text everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace headwater::cli {

struct QualityPrompt {
  std::string context;   // the long text
  std::string question;  // follows it; ends in "Answer:"
  std::vector<std::string> expected;
};

struct QualityTask {
  std::string_view name;
  std::string_view help;
  // depth: where in the context the answer lies, 0 (begin) to 1 (end).
  QualityPrompt (*make)(int64_t context_chars, double depth, uint64_t seed);
};

std::span<const QualityTask> quality_tasks();
// nullptr: no such task.
const QualityTask* find_quality_task(std::string_view name);
// "needle, multikey, ...": for messages.
std::string quality_task_names();

// The share of the expected strings that the first line of the answer holds, 0 to 1.
double recall_of(const std::vector<std::string>& expected, std::string_view answer);

// About so many characters of sentences that answer nothing.
std::string filler_text(int64_t chars, uint64_t seed);

}  // namespace headwater::cli
