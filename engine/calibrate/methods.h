// The ways to find a model's important heads: rows of a table, from a model to a head table.
// Thread: the caller's.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/attention/head_table.h"
#include "engine/calibrate/checkpoint.h"
#include "engine/calibrate/retrieval_prompts.h"
#include "engine/model/loaded_model.h"
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
};

struct Calibration {  // nothing is owned
  const LoadedModel& files;
  const Tokenizer& tokenizer;
  Ops& ops;
  CalibrationOptions options;
  std::vector<RetrievalPrompt> prompts;  // the operator's own; empty: made from the seed
  Checkpoint& checkpoint;
  std::function<void(const std::string& stage, int64_t done, int64_t total)> progress;
  std::function<void(const std::string& line)> say;
};

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
