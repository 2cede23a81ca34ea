// DuoAttention end to end on needle-24m: gates found on some passkey texts, tried on others,
// against everything kept and against random heads of the same number. Ten passkeys lie at ten
// depths. Rows of the prompt see by the windows too, as in the server's streaming prefill.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>
#include <numeric>

#include "engine/calibrate/duo.h"
#include "tests/support/gradient_device.h"
#include "tests/support/random.h"

using namespace headwater;

namespace {

constexpr int32_t kLength = 1400;
constexpr size_t kKept = 6;  // of 32 heads

std::vector<CalibrationSample> texts(const Tokenizer& tokenizer, uint64_t seed, int count) {
  std::vector<CalibrationSample> samples;
  for (int i = 0; i < count; ++i) {
    PasskeyOptions options;
    options.length = kLength;
    options.seed = seed + static_cast<uint64_t>(i);
    samples.push_back(make_passkeys(tokenizer, options));
  }
  return samples;
}

// Part of the answers' tokens that are the likeliest ones.
double accuracy(GradientModel& model,
                const std::vector<CalibrationSample>& samples,
                const HeadGates* gates) {
  int64_t right = 0, total = 0;
  const auto vocab = static_cast<int64_t>(model.spec().vocab_size);
  for (const CalibrationSample& sample : samples) {
    model.forward(sample.tokens, sample.rows[0], gates);
    const std::vector<float> logits = model.logits(model.hidden());
    for (const int32_t row : sample.rows) {
      const auto begin = logits.begin() + (row - sample.rows[0]) * vocab;
      const auto best = std::max_element(begin, begin + vocab) - begin;
      right += best == sample.tokens.at(static_cast<size_t>(row) + 1);
      ++total;
    }
  }
  return static_cast<double>(right) / static_cast<double>(total);
}

HeadGates keep(const DuoOptions& options, std::span<const int32_t> heads, size_t num_heads) {
  HeadGates gates{std::vector<float>(num_heads, 0.0f), options.sinks, options.recent};
  for (const int32_t head : heads) gates.alpha[static_cast<size_t>(head)] = 1.0f;
  return gates;
}

}  // namespace

TEST_CASE("Duo on needle-24m: the heads it finds answer, random ones do not",
          "[calibrate][slow][device]") {
  const auto files = load_model(HW_SOURCE_DIR "/tests/data/needle-24m-q8_0.gguf");
  const auto tokenizer = make_tokenizer(files->vocabulary);
  ThreadPool pool(0);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  GradientModel model(*files, *ops);
  DuoOptions options;
  options.steps = 60;
  options.learning_rate = 0.04;
  options.recent = 128;
  DuoGates gates;
  optimize_gates(model, texts(*tokenizer, 1, 6), options, gates);
  const std::vector<int32_t> ranking = gates.ranking();

  const auto asked = texts(*tokenizer, 1000, 3);
  const double dense = accuracy(model, asked, nullptr);
  const std::span<const int32_t> best(ranking.data(), kKept);
  const HeadGates found = keep(options, best, ranking.size());
  const double kept = accuracy(model, asked, &found);
  const std::span<const int32_t> rest(ranking.data() + kKept, ranking.size() - kKept);
  const HeadGates others = keep(options, rest, ranking.size());
  const double without = accuracy(model, asked, &others);

  constexpr int kDraws = 20;
  testing::Random random(7);
  double chance = 0;
  std::vector<int32_t> order(ranking.size());
  std::iota(order.begin(), order.end(), 0);
  for (int draw = 0; draw < kDraws; ++draw) {
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
    const HeadGates drawn = keep(options, std::span(order).first(kKept), order.size());
    chance += accuracy(model, asked, &drawn) / kDraws;
  }
  std::printf(
      "answer tokens right: dense %.3f, %zu heads found %.3f, all but them %.3f, %d random "
      "draws of as many %.3f\n",
      dense,
      kKept,
      kept,
      without,
      kDraws,
      chance);
  CHECK(kept >= dense - 0.03);
  CHECK(without <= dense - 0.2);
  CHECK(chance <= dense - 0.2);
}
