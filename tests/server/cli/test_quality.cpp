#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/base/status.h"
#include "server/cli/bench_quality.h"
#include "server/cli/quality_report.h"
#include "server/cli/quality_tasks.h"

namespace headwater::cli {
namespace {

using Catch::Matchers::Contains;
using Catch::Matchers::EndsWith;
using Catch::Matchers::StartsWith;

AnswerRecord answer(const std::string& task, PerWay<double> recalls, double depth = 0.5) {
  AnswerRecord record;
  record.task = task;
  record.length = 2048;
  record.depth = depth;
  record.texts = {"12", "12", recalls[2] == recalls[0] ? "12" : "7"};
  record.recalls = recalls;
  record.output_tokens = {2, 2, 4};
  record.kv_bytes = 1'000'000;
  record.kv_bytes_dense = 3'000'000;
  return record;
}

const QualityRow& row_of(const QualitySection& section, const std::string& name) {
  for (const QualityRow& row : section.rows)
    if (row.name == name) return row;
  FAIL("no row " + name + " in " + section.title);
  return section.rows[0];
}

}  // namespace

TEST_CASE("Quality tasks: a prompt holds what it asks for, at its depth, as long as asked",
          "[server][unit]") {
  for (const QualityTask& task : quality_tasks()) {
    CAPTURE(task.name);
    for (const double depth : {0.0, 0.5, 0.95}) {
      const QualityPrompt prompt = task.make(12'000, depth, 5);
      const QualityPrompt again = task.make(12'000, depth, 5);
      CHECK(prompt.context == again.context);
      CHECK(prompt.question == again.question);
      CHECK(prompt.context != task.make(12'000, depth, 6).context);
      CHECK(std::abs(static_cast<double>(prompt.context.size()) - 12'000) < 300);
      CHECK_THAT(prompt.question, EndsWith("\nAnswer:"));
      REQUIRE(!prompt.expected.empty());
      for (const std::string& text : prompt.expected) CHECK_THAT(prompt.context, Contains(text));
      if (task.name == "needle" || task.name == "multikey" || task.name == "copy") {
        const double at = static_cast<double>(prompt.context.find(prompt.expected[0])) / 12'000;
        CHECK(at == Approx(depth).margin(0.05));
        CHECK(prompt.context.find(prompt.expected[0], static_cast<size_t>(at * 12'000) + 5) ==
              std::string::npos);
      }
    }
  }
  // The same text everywhere and for ever: results of different machines are compared.
  CHECK(filler_text(60, 1) == filler_text(60, 1));
  CHECK(find_quality_task("needle") != nullptr);
  CHECK(find_quality_task("pin") == nullptr);
}

TEST_CASE("Quality tasks: frequent words are frequent", "[server][unit]") {
  const QualityPrompt prompt = find_quality_task("words")->make(6'000, 0, 3);
  const auto count = [&](const std::string& word) {
    int found = 0;
    for (size_t at = prompt.context.find(" " + word); at != std::string::npos;
         at = prompt.context.find(" " + word, at + 1))
      ++found;
    return found;
  };
  REQUIRE(prompt.expected.size() == 3);
  for (const std::string& word : prompt.expected) CHECK(count(word) > 60);
  int rare = 0;
  for (const char* word : {"anchor", "badger", "falcon", "kettle", "temple", "ribbon"})
    rare += count(word) < 40 ? 1 : 0;
  CHECK(rare >= 3);
}

TEST_CASE("Quality: recall reads the first line of an answer", "[server][unit]") {
  CHECK(recall_of({"123"}, " 123\n456") == 1);
  CHECK(recall_of({"123"}, "\n It is 123.") == 1);
  CHECK(recall_of({"456"}, " 123\n456") == 0);
  CHECK(recall_of({"1", "2", "3", "4"}, "4, 1") == 0.5);
  CHECK(recall_of({"1"}, "") == 0);
}

TEST_CASE("Quality: divergence of log probabilities", "[server][unit]") {
  const double l2 = std::log(0.5), l4 = std::log(0.25), l8 = std::log(0.125);
  const ForcedText a{{l2, l4}, {{{"x", l2}, {"y", l4}}, {{"x", l4}, {"y", l2}}}};
  CHECK(divergence_of({a}, {a}).kl == 0);
  CHECK(divergence_of({a}, {a}).top1_agreement == 1);
  ForcedText b = a;
  b.logprobs[0] = l4;
  b.tops[0] = {{"x", l4}, {"y", l2}};
  const Divergence d = divergence_of({a}, {b});
  // 1/2 log 2 - 1/4 log 2 at the first token, and the rests of 1/4 are equal.
  CHECK(d.kl == Approx(0.25 * std::log(2.0) / 2));
  CHECK(d.abs_delta_logprob == Approx(std::log(2.0) / 2));
  CHECK(d.top1_agreement == 0.5);
  b = a;
  b.tops[0] = {{"x", l8}, {"z", l2}};  // y is part of the rest: 1/2 log 4 + 1/2 log(4/7)
  CHECK(divergence_of({a}, {b}).kl == Approx((0.5 * std::log(4.0) + 0.5 * std::log(4.0 / 7)) / 2));
  CHECK(loss_of({a}) == Approx(1.5 * std::log(2.0)));
}

TEST_CASE("Quality: sections average over prompts, notes say what proves nothing",
          "[server][unit]") {
  const std::vector<AnswerRecord> answers = {answer("needle", {1, 1, 0}, 0.1),
                                             answer("needle", {1, 0.5, 1}, 0.9),
                                             answer("words", {0, 0, 0}, 0.9)};
  const QualitySection recall = recall_section(answers, 2048);
  CHECK_THAT(recall.title, Contains("2048"));
  CHECK(row_of(recall, "needle").values[0] == 100.0);
  CHECK(row_of(recall, "needle").values[1] == 75.0);
  CHECK(row_of(recall, "needle").values[2] == 50.0);
  CHECK(*row_of(recall, "mean").values[0] == Approx(200.0 / 3));
  CHECK(row_of(recall, "  in the first third").values[2] == 0.0);
  CHECK(row_of(recall, "  in the last third").values[0] == 50.0);
  CHECK(*row_of(recall, "same text as dense, %").values[2] == Approx(200.0 / 3));
  CHECK_FALSE(row_of(recall, "same text as dense, %").values[0]);
  CHECK(*row_of(recall, "tokens of an answer").values[2] == Approx(4));
  CHECK(bytes_section(answers).rows[0].values[0] == 3.0);
  CHECK(bytes_section(answers).rows[0].values[1] == 1.0);

  CHECK_THAT(quality_notes(answers)[0], Contains("words") && !Contains("needle,"));
  std::vector<AnswerRecord> nothing_dropped = answers;
  for (AnswerRecord& record : nothing_dropped) record.kv_bytes = record.kv_bytes_dense;
  CHECK_THAT(quality_notes(nothing_dropped)[0], StartsWith("The server dropped nothing"));

  const std::string table = format_quality({recall}, {"a note"});
  CHECK_THAT(table, Contains("75.0") && Contains("a note") && Contains("served"));
  const auto json = quality_json({recall}, {}, answers);
  CHECK(json["sections"][0]["rows"][0]["served"] == 75.0);
  CHECK(json["answers"].size() == 3);
  CHECK(json["answers"][0]["after"]["text"] == "7");
}

TEST_CASE("Quality: options out of range are refused by name", "[server][unit]") {
  const auto refused = [](const QualityConfig& config, const char* name) {
    CHECK_THROWS_WITH(check_quality(config), Contains(name));
  };
  refused({.lengths = "2048,x"}, "--quality-lengths");
  refused({.lengths = "12"}, "--quality-lengths");
  refused({.lengths = ","}, "--quality-lengths");
  refused({.tasks = "needle,pin"}, "pin");
  refused({.num_prompts = 0}, "--quality-prompts");
  refused({.text = "/nonexistent"}, "--quality-text");
  CHECK_NOTHROW(check_quality({.lengths = "256,9000", .tasks = "needle,copy"}));
}

}  // namespace headwater::cli
