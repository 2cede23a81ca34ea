// quality_report: what the quality requests gave -> rows of figures, the table and the JSON of
// `headwater bench --quality`. Pure functions.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace headwater::cli {

// Three ways to serve one prompt, the columns of every row:
//   dense   every head keeps everything
//   served  as the server does when a request says nothing
//   after   the context is compressed first; the question, the continuation or the second copy
//           comes behind it and sees what output sees
enum class Way : uint8_t { kDense, kServed, kAfter };
constexpr size_t kNumWays = 3;
template <typename T>
using PerWay = std::array<T, kNumWays>;

struct AnswerRecord {
  std::string task;
  int64_t length = 0;  // asked for, in tokens
  double depth = 0;
  std::vector<std::string> expected;
  PerWay<std::string> texts;
  PerWay<double> recalls{};
  PerWay<int64_t> output_tokens{};
  int64_t kv_bytes = 0, kv_bytes_dense = 0;  // of way served, when the request ended
};

// Log probabilities of a forced text, token by token.
struct ForcedText {
  std::vector<double> logprobs;                     // of the text's tokens
  std::vector<std::map<std::string, double>> tops;  // the likeliest tokens there
};

struct Divergence {
  double kl = 0;  // nats, mean over tokens; of the tokens that both list and the rest as one: a
                  // lower bound of KL(a || b)
  double abs_delta_logprob = 0;
  double top1_agreement = 0;
};
Divergence divergence_of(const std::vector<ForcedText>& a, const std::vector<ForcedText>& b);
// -mean log p.
double loss_of(const std::vector<ForcedText>& texts);

struct QualityRow {
  std::string name;
  PerWay<std::optional<double>> values;
  int precision = 0;
};
struct QualitySection {
  std::string title;
  std::vector<QualityRow> rows;
};

QualitySection recall_section(const std::vector<AnswerRecord>& answers, int64_t length);
QualitySection bytes_section(const std::vector<AnswerRecord>& answers);
QualitySection forced_section(const PerWay<std::vector<ForcedText>>& texts, int64_t length);
QualitySection repeat_section(const PerWay<std::vector<ForcedText>>& copies, int64_t length);
// What a reader of the sections has to know; one sentence each.
std::vector<std::string> quality_notes(const std::vector<AnswerRecord>& answers);

std::string format_quality(const std::vector<QualitySection>& sections,
                           const std::vector<std::string>& notes);
nlohmann::ordered_json quality_json(const std::vector<QualitySection>& sections,
                                    const std::vector<std::string>& notes,
                                    const std::vector<AnswerRecord>& answers);

}  // namespace headwater::cli
