// DuoAttention's gates: the passkey texts, the schedule, and that only heads which matter stay
// open.
#include <catch2/catch.hpp>
#include <set>

#include "engine/calibrate/duo.h"
#include "kernels/base/status.h"
#include "tests/support/gradient_device.h"
#include "tests/support/tiny_model.h"

using namespace headwater;

namespace {

std::string text_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) text += tokenizer.token_bytes(id, true);
  return text;
}

}  // namespace

TEST_CASE("Passkeys: every answer is stated once before, within the length", "[calibrate][unit]") {
  const auto files = testing::make_tiny_model();
  const auto tokenizer = make_tokenizer(files->vocabulary);
  for (const int32_t length : {700, 2048, 6000}) {
    PasskeyOptions options;
    options.length = length;
    options.seed = static_cast<uint64_t>(length);
    const CalibrationSample sample = make_passkeys(*tokenizer, options);
    CHECK(static_cast<int32_t>(sample.tokens.size()) <= length);
    CHECK(static_cast<int32_t>(sample.tokens.size()) > length * 9 / 10);
    CHECK(sample.tokens[0] == testing::kTinyBos);
    const std::string text = text_of(*tokenizer, sample.tokens);

    // The answers' tokens are runs; each run is a passkey, which the haystack holds too.
    std::vector<std::vector<int32_t>> runs;
    for (size_t i = 0; i < sample.rows.size(); ++i) {
      if (i == 0 || sample.rows[i] != sample.rows[i - 1] + 1) runs.emplace_back();
      runs.back().push_back(sample.tokens.at(static_cast<size_t>(sample.rows[i]) + 1));
    }
    CHECK(runs.size() == (length == 700 ? 3 : 10));
    std::set<std::string> distinct;
    for (const auto& run : runs) {
      const std::string key = text_of(*tokenizer, run);
      distinct.insert(key);
      const size_t stated = text.find(" passkey is:" + key);
      const size_t answered = text.rfind(" passkey is:" + key);
      CHECK(stated != std::string::npos);
      CHECK(stated < text.find("Question:"));
      CHECK(answered > text.find("Question:"));
    }
    CHECK(distinct.size() == runs.size());
  }
  PasskeyOptions tight;
  tight.length = 200;
  CHECK_THROWS_AS(make_passkeys(*tokenizer, tight), ConfigError);
}

TEST_CASE("Duo: the learning rate goes up, stays, comes down", "[calibrate][unit]") {
  CHECK(duo_schedule(0, 100) == Approx(0.1 + 0.9 / 20));
  CHECK(duo_schedule(19, 100) == 1.0);
  CHECK(duo_schedule(50, 100) == 1.0);
  CHECK(duo_schedule(80, 100) == 1.0);
  CHECK(duo_schedule(99, 100) == Approx(0.1 + 0.9 / 20));
  CHECK(duo_schedule(0, 1) == 1.0);
}

TEST_CASE("Duo: gates close but where a head's far past reaches the answers",
          "[calibrate][unit][device]") {
  testing::TinyModelOptions model_options;
  model_options.hidden_dim = 32;
  model_options.head_dim = 16;
  model_options.ffn_dim = 32;
  const auto files = testing::make_tiny_model(model_options);
  // V of head (1, 1) made large, of the others zero: only its gate can matter.
  const int64_t values = int64_t{2} * 16 * 32;
  std::vector<float> silent(static_cast<size_t>(values)), loud(static_cast<size_t>(values));
  const auto* v = static_cast<const float*>(files->weights.layers[1].v.data);
  for (size_t i = loud.size() / 2; i < loud.size(); ++i) loud[i] = 20 * v[i];
  files->weights.layers[0].v.data = silent.data();
  files->weights.layers[1].v.data = loud.data();

  const auto tokenizer = make_tokenizer(files->vocabulary);
  PasskeyOptions passkeys;
  passkeys.length = 420;
  passkeys.num_passkeys = 1;
  const std::vector<CalibrationSample> samples = {make_passkeys(*tokenizer, passkeys)};
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  GradientModel model(*files, *ops);
  DuoOptions options;
  options.steps = 40;
  options.learning_rate = 0.1;
  options.sinks = 2;
  options.recent = 16;
  DuoGates gates;
  optimize_gates(model, samples, options, gates);
  CHECK(gates.distortion.size() == 40);
  CHECK(gates.distortion[0] == 0);  // all gates open: the model itself
  CHECK(gates.alpha.at(3) > 0.5f);
  for (const size_t closed : {0, 1, 2}) CHECK(gates.alpha.at(closed) == 0.0f);
  CHECK(gates.ranking()[0] == 3);

  // Stopped and resumed on the way, with samples read anew.
  DuoGates resumed;
  optimize_gates(model, samples, options, resumed, [](const DuoGates& now) {
    return now.distortion.size() < 7;
  });
  CHECK(resumed.distortion.size() == 7);
  optimize_gates(model, samples, options, resumed);
  CHECK(resumed.alpha == gates.alpha);
  CHECK(resumed.distortion == gates.distortion);
  CHECK(resumed.pull == gates.pull);

  const HeadTable table = duo_table(gates, head_table_model(*files), 0.25);
  CHECK(table.heads == std::vector<int32_t>{HeadTable::kCompressed,
                                            HeadTable::kCompressed,
                                            HeadTable::kCompressed,
                                            HeadTable::kFull});
  const HeadTable read = parse_head_table(write_head_table(table), "written", table.model);
  CHECK(read.ranking == gates.ranking());
  CHECK(read.scores.at("gate").size() == 4);
}

TEST_CASE("Duo: ranking by gate, then by pull, then by order; the published text",
          "[calibrate][unit]") {
  DuoGates gates;
  gates.alpha = {0.5f, 1.0f, 0.0f, 1.0f, 0.0f, 0.5f};
  gates.pull = {0.1, 0.2, 0.0, 0.3, 0.0, 0.1};
  CHECK(gates.ranking() == std::vector<int32_t>{3, 1, 0, 5, 2, 4});
  CHECK(duo_tsv(gates.alpha, 2) == "0.500000\t1.000000\n0.000000\t1.000000\n0.000000\t0.500000\n");
  CHECK(duo_config({}).find("\"sink_size\": 64, \"recent_size\": 256") != std::string::npos);
}
