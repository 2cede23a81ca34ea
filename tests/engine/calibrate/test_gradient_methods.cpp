// The rows duo and moa of the table of methods, on a tiny model: from options to a head table.
#include <catch2/catch.hpp>

#include "engine/attention/policy_table.h"
#include "engine/calibrate/methods.h"
#include "kernels/base/status.h"
#include "tests/support/tiny_model.h"

using namespace headwater;

namespace {

struct Fixture {
  std::unique_ptr<LoadedModel> files = testing::make_tiny_model();
  std::unique_ptr<Tokenizer> tokenizer = make_tokenizer(files->vocabulary);
  ThreadPool pool{2};
  std::unique_ptr<Ops> ops = make_ref_ops(pool);
  Checkpoint checkpoint;
  int64_t steps = 0;
  std::vector<std::pair<std::string, std::string>> published;

  HeadTable run(const std::string& method, const CalibrationOptions& options) {
    Calibration calibration{*files,
                            *tokenizer,
                            *ops,
                            pool,
                            options,
                            {},
                            checkpoint,
                            [&](const std::string&, int64_t, int64_t) { ++steps; },
                            [](const std::string&) {},
                            {}};
    HeadTable table = find_calibration_method(method).run(calibration);
    published = calibration.published;
    // What is written must be read again.
    return parse_head_table(write_head_table(table), "written", head_table_model(*files));
  }
};

CalibrationOptions small_options() {
  CalibrationOptions options;
  options.num_prompts = 3;
  options.min_tokens = 400;
  options.max_tokens = 600;
  options.duo_steps = 4;
  options.window = 32;
  options.heads = 0.5;
  return options;
}

std::string refusal(Fixture& fixture,
                    const std::string& method,
                    const CalibrationOptions& options) {
  try {
    fixture.run(method, options);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("Method duo: a ranked table, the published form, and no step twice",
          "[calibrate][unit]") {
  Fixture fixture;
  const CalibrationOptions options = small_options();
  const HeadTable table = fixture.run("duo", options);
  CHECK(std::count(table.heads.begin(), table.heads.end(), HeadTable::kFull) == 2);
  CHECK(table.ranking.size() == 4);
  CHECK(table.scores.count("gate") == 1);
  REQUIRE(fixture.published.size() == 2);
  CHECK(fixture.published[0].first == "full_attention_heads.tsv");
  CHECK(fixture.steps == 4);
  const HeadTable again = fixture.run("duo", options);  // everything is in the checkpoint
  CHECK(fixture.steps == 4);
  CHECK(again.ranking == table.ranking);
  CHECK(again.scores == table.scores);

  CalibrationOptions bad = options;
  bad.duo_data = "books";
  CHECK(refusal(fixture, "duo", bad).find("duo-data must be passkeys or questions") == 0);
  bad = options;
  bad.max_tokens = 5000;  // the model has 4096 positions
  CHECK(refusal(fixture, "duo", bad).find("4096 positions") != std::string::npos);
}

TEST_CASE("Method moa: spans within the density, the published form", "[calibrate][unit]") {
  Fixture fixture;
  CalibrationOptions options = small_options();
  options.density = 0.6;
  options.alpha_step = 64;
  const HeadTable table = fixture.run("moa", options);
  CHECK(table.heads.size() == 4);
  CHECK(table.scores.count("hidden_by_narrowest") == 1);
  REQUIRE(fixture.published.size() == 1);
  const HeadTable published =
      parse_head_table(fixture.published[0].second, "moa.json", head_table_model(*fixture.files));
  const kv::RetentionRule any = find_policy("moa")->compressed;
  const auto rules = retention_rules(table, any), theirs = retention_rules(published, any);
  for (size_t head = 0; head < rules.size(); ++head)
    for (const int32_t position : {63, 400, 4095})
      CHECK((rules[head].window_start(position) == theirs[head].window_start(position) ||
             rules[head].keeps_all()));

  options.moa_group = "mean";
  CHECK(refusal(fixture, "moa", options).find("moa-group must be sum or max") == 0);
  options = small_options();
  options.density = 0;
  CHECK(refusal(fixture, "moa", options).find("density must be above 0") == 0);
}
