// The ways to find a model's important heads: rows of a table, from a model to a head table.
// Thread: the caller's.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/attention/head_table.h"
#include "engine/calibrate/checkpoint.h"
#include "engine/calibrate/retrieval_prompts.h"
#include "engine/model/loaded_model.h"
#include "engine/model/model.h"
#include "kernels/ops.h"

namespace headwater {

// Fields are options of `headwater calibrate`; what they mean stands there.
struct CalibrationOptions {
  uint64_t seed = 1;
  // razor
  int32_t block_tokens = 2500;
  int32_t repeats = 4;
  double induction = 0.14;
  double echo = 0.01;
  // measured
  double heads = 0.25;
  double budget = 0;  // 0: by heads
  int32_t budget_tokens = 32768;
  int32_t num_prompts = 24;
  int32_t min_tokens = 1024;
  int32_t max_tokens = 4096;
  int32_t window = 256;
  int32_t question_tokens = 0;
  // duo
  std::string duo_data = "passkeys";
  int32_t duo_steps = 120;
  double duo_rate = 0.02;
  double duo_press = 0.05;
  // moa
  double density = 0.5;
  int32_t moa_rules = 2;
  int32_t alpha_step = 256;
  std::string moa_group = "sum";
  std::string moa_rows = "all";
};

struct Calibration {  // nothing is owned
  const LoadedModel& files;
  const Tokenizer& tokenizer;
  Ops& ops;
  ThreadPool& pool;
  CalibrationOptions options;
  std::vector<RetrievalPrompt> prompts;  // the operator's own; empty: made from the seed
  Checkpoint& checkpoint;
  std::function<void(const std::string& stage, int64_t done, int64_t total)> progress;
  std::function<void(const std::string& line)> say;
  // Set by methods whose authors have a format of their own: file names and contents.
  std::vector<std::pair<std::string, std::string>> published;
};

// What methods share. The model reads steps of 512 rows.
Model make_model(const Calibration& calibration);
// Questions by the options: tasks take turns, lengths go from the least to the most.
std::vector<RetrievalPrompt> make_prompts(const Calibration& calibration);
// Ids that end an answer: of the model's own ends, and whatever begins a new line.
std::vector<int32_t> stop_ids(const Calibration& calibration);

struct CalibrationMethod {
  std::string_view name;
  std::string_view help;
  std::string_view map;  // the score that the heat map shows
  // Throws ConfigError where options and model do not fit.
  HeadTable (*run)(Calibration& calibration);
};

std::span<const CalibrationMethod> calibration_methods();
// Throws ConfigError with the known names.
const CalibrationMethod& find_calibration_method(std::string_view name);

}  // namespace headwater
