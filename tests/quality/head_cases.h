// head_cases: what head_eval asks: questions from a file or generated, pieces of a text, repeated
// blocks. Data only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace headwater {
class Tokenizer;
}

namespace headwater::quality {

inline constexpr const char* kRepeatedBlock = "repeated_block";  // loss, nats per token
inline constexpr const char* kTextKl = "text_kl";                // mean KL(dense, variant), nats
inline constexpr const char* kTextTop1 = "text_top1";  // share of rows with dense's likeliest token

struct CaseSource {
  std::string set;           // JSON lines; "" = generated questions
  std::string text;          // instead of questions: pieces of this file
  int64_t repeat_block = 0;  // instead of both: random blocks of so many tokens
  std::string tasks;         // names, comma-separated; "" = all
  std::string lengths = "2048";
  int64_t n = 10;            // per task and length
  int32_t max_tokens = 128;  // of an answer; of a piece of text, how many are judged
  uint64_t seed = 1;

  std::vector<int64_t> length_list() const;
};

// One prompt of the run.
struct Case {
  std::string task;
  int64_t length = 0;
  int64_t index = 0;  // among those of the task and length
  double depth = 0;
  std::string context, question;
  std::vector<std::string> expected;
  bool exact = false;        // the whole answer, else what it holds
  std::vector<int32_t> ids;  // of a piece of text

  std::string key() const {
    return task + " " + std::to_string(length) + " " + std::to_string(index);
  }
};

std::vector<std::string> split(const std::string& text, char separator);

// ConfigError names the option and the file.
std::vector<Case> make_cases(const CaseSource& source, const Tokenizer& tokenizer);

// Writes questions so that they can be a set again.
void export_cases(const std::string& path, const std::vector<Case>& cases);

}  // namespace headwater::quality
