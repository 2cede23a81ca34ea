// The measured ranking: redundant heads, resuming, costs of a real model; its prompts; checkpoints.
#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>
#include <numeric>
#include <set>

#include "engine/calibrate/checkpoint.h"
#include "engine/calibrate/measured.h"
#include "engine/calibrate/methods.h"
#include "kernels/base/status.h"
#include "tests/support/temp_file.h"
#include "tests/support/test_device.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

using Full = std::vector<bool>;

// Six heads: 0 worth 3, 1 worth 0.5, 2 and 3 do the same work worth 5, 4 and 5 nothing much.
double worth(const Full& full) {
  double cost = 0;
  if (!full[0]) cost += 3;
  if (!full[1]) cost += 0.5;
  if (!full[2] && !full[3]) cost += 5;
  if (!full[4]) cost += 0.02;
  if (!full[5]) cost += 0.01;
  return cost;
}

bool always(const RankingState&) { return true; }

}  // namespace

TEST_CASE("rank_heads: of two heads that do the same work one stays", "[calibrate][unit]") {
  RankingState state;
  REQUIRE(rank_heads(6, worth, state, always));
  const HeadRanking ranking = finish_ranking(state);
  // Leaving one out at a time sees nothing in 2 and 3.
  CHECK(ranking.alone == std::vector<double>{3, 0.5, 0, 0, 0.02, 0.01});
  REQUIRE(ranking.order.size() == 6);
  CHECK((ranking.order[0] == 2 || ranking.order[0] == 3));
  CHECK(ranking.order[1] == 0);
  CHECK(ranking.order[2] == 1);
  CHECK(ranking.order[3] == 4);
  CHECK(ranking.order[4] == 5);
  CHECK(ranking.cost_of[static_cast<size_t>(ranking.order[0])] == Approx(8.53));
  CHECK(ranking.cost_of[0] == Approx(3.53));
  // Lazily: far fewer trials than every head in every round.
  CHECK(state.trials < 6 + 5 + 4 + 3 + 2 + 1);
}

TEST_CASE("rank_heads: stopped anywhere and resumed, it ends the same", "[calibrate][unit]") {
  RankingState whole;
  rank_heads(6, worth, whole, always);
  for (int stop = 1; stop < 12; ++stop) {
    RankingState state;
    int steps = 0;
    CHECK_FALSE(rank_heads(6, worth, state, [&](const RankingState&) { return ++steps < stop; }));
    CHECK(rank_heads(6, worth, state, always));
    CHECK(state.removed == whole.removed);
    CHECK(state.cost_after == whole.cost_after);
  }
}

TEST_CASE("AnswerCosts: nothing compressed costs nothing, more costs something",
          "[calibrate][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const int32_t question_tokens = GENERATE(0, 20);
  CAPTURE(*device, question_tokens);
  const auto files = make_tiny_model();
  const auto tokenizer = make_tokenizer(files->vocabulary);
  ThreadPool pool(2);
  const auto ops = testing::make_ops(*device, pool);
  Model model(*files, *ops, {64, 32});
  Probe probe(model, *ops);
  std::vector<RetrievalPrompt> prompts;
  for (const std::string& task : retrieval_tasks())
    prompts.push_back(make_retrieval_prompt(*tokenizer, task, 500, 3));
  AnswerCosts::Options options;
  options.compressed = {
      .sink_tokens = 4, .recent_tokens = 64, .block_tokens = 16, .compensate = true};
  options.max_answer_tokens = 8;
  options.question_tokens = question_tokens;
  AnswerCosts costs(probe, prompts, options);
  REQUIRE(costs.answers().size() == prompts.size());
  CHECK(costs.answers().back().tokens == prompts.back().answer);  // forced: the copied block
  CHECK(costs.cost(Full(4, true)) == Approx(0).margin(1e-5));
  const double all = costs.cost(Full(4, false));
  CHECK(all > 1e-4);
  CHECK(costs.cost({true, true, false, true}) > 0);
  CHECK(costs.cost(Full(4, false)) == all);
}

TEST_CASE("Prompts: of the length asked for, from the seed alone, with their answer inside",
          "[calibrate][unit]") {
  const auto files = make_tiny_model();
  const auto tokenizer = make_tokenizer(files->vocabulary);
  std::set<std::vector<int32_t>> all;
  for (const std::string& task : retrieval_tasks()) {
    for (const int32_t length : {600, 1500}) {
      CAPTURE(task, length);
      const RetrievalPrompt prompt = make_retrieval_prompt(*tokenizer, task, length, 7);
      CHECK(prompt.tokens == make_retrieval_prompt(*tokenizer, task, length, 7).tokens);
      CHECK(prompt.tokens != make_retrieval_prompt(*tokenizer, task, length, 8).tokens);
      CHECK(static_cast<int32_t>(prompt.tokens.size()) <= length);
      CHECK(static_cast<int32_t>(prompt.tokens.size()) > length - 150);
      all.insert(prompt.tokens);
      std::string text;
      for (const int32_t id : prompt.tokens) text += tokenizer->token_bytes(id, false);
      // Every value of the answer is in the text, in the order of the answer.
      size_t at = 0;
      for (size_t begin = 0; begin < prompt.expected.size();) {
        const size_t end = std::min(prompt.expected.find(", ", begin), prompt.expected.size());
        at = text.find(prompt.expected.substr(begin, end - begin), at);
        REQUIRE(at != std::string::npos);
        begin = end + 2;
      }
      if (!prompt.answer.empty()) {
        const std::vector<int32_t>& tokens = prompt.tokens;
        CHECK(
            std::search(tokens.begin(), tokens.end(), prompt.answer.begin(), prompt.answer.end()) !=
            tokens.end());
      }
    }
  }
  CHECK(all.size() == retrieval_tasks().size() * 2);
}

TEST_CASE("Checkpoint: comes back under its own key only", "[calibrate][unit]") {
  const TempFolder folder;
  const std::string path = (folder.path() / "x.partial").string();
  Checkpoint first(path, "key a");
  CHECK_FALSE(first.resumed());
  first.set("costs", {0.1, 1e-300, 3});
  first.set("none", {});
  first.save();
  const Checkpoint again(path, "key a");
  CHECK(again.resumed());
  CHECK(again.get("costs") == std::vector<double>{0.1, 1e-300, 3});
  CHECK(again.get("none").empty());
  CHECK_FALSE(Checkpoint(path, "key b").resumed());
  first.remove();
  CHECK_FALSE(std::ifstream(path).good());
}

TEST_CASE("Methods: tables are complete, resume, and refuse what does not fit",
          "[calibrate][unit]") {
  const auto files = make_tiny_model();
  const auto tokenizer = make_tokenizer(files->vocabulary);
  ThreadPool pool(2);
  const auto ops = make_cpu_ops(pool);
  const TempFolder folder;
  const auto run = [&](const std::string& method, const CalibrationOptions& options) {
    Checkpoint checkpoint((folder.path() / (method + ".partial")).string(), method);
    Calibration calibration{*files,
                            *tokenizer,
                            *ops,
                            pool,
                            options,
                            {},
                            checkpoint,
                            [](const std::string&, int64_t, int64_t) {},
                            [](const std::string&) {},
                            {}};
    return find_calibration_method(method).run(calibration);
  };
  CalibrationOptions options;
  options.block_tokens = 40;
  options.num_prompts = 6;
  options.min_tokens = options.max_tokens = 500;
  options.window = 64;
  options.heads = 0.5;
  for (const std::string method : {"razor", "measured"}) {
    CAPTURE(method);
    const HeadTable table = run(method, options);
    CHECK(table.method == method);
    CHECK(std::set<int32_t>(table.ranking.begin(), table.ranking.end()).size() == 4);
    CHECK(table.scores.at(std::string(find_calibration_method(method).map)).size() == 4);
    const auto full = std::ranges::count(table.heads, HeadTable::kFull);
    CHECK(full == 2);  // razor: one of 4 heads by induction, one by echo; measured: half
    for (int32_t i = 0; i < full; ++i)
      CHECK(table.heads[static_cast<size_t>(table.ranking[static_cast<size_t>(i)])] ==
            HeadTable::kFull);
    CHECK(write_head_table(run(method, options)) == write_head_table(table));
  }
  options.budget = 0.5;  // of 512 tokens a window of 4000 drops nothing
  options.budget_tokens = 512;
  CHECK_THROWS_AS(run("measured", options), ConfigError);
  options.budget = 1;
  CHECK(std::ranges::count(run("measured", options).heads, HeadTable::kFull) == 4);
  options.repeats = 1;
  CHECK_THROWS_AS(run("razor", options), ConfigError);
  options.max_tokens = 100;
  CHECK_THROWS_AS(run("measured", options), ConfigError);
  CHECK_THROWS_AS(find_calibration_method("nonsense"), ConfigError);
}
