// GradientModel against RefOps (forward) and against finite differences in double (reverse).
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>

#include "engine/calibrate/gradients.h"
#include "tests/engine/calibrate/double_model.h"
#include "tests/support/engine_harness.h"
#include "tests/support/gradient_device.h"
#include "tests/support/random.h"
#include "tests/support/tiny_model.h"

using namespace headwater;
using testing::DoubleModel;
using testing::MaskStep;
using testing::Random;

namespace {

testing::TinyModelOptions small_options() {
  testing::TinyModelOptions options;
  options.hidden_dim = 32;
  options.head_dim = 16;
  options.ffn_dim = 48;
  options.attention_bias = true;
  return options;
}

std::vector<int32_t> random_tokens(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.below(256)));
  return tokens;
}

// A loss that is a weighted sum of the hidden states behind first_row.
struct Weighted {
  std::vector<float> weights;
  int64_t skipped;  // values of earlier rows

  Weighted(const ModelSpec& spec, int64_t rows, int32_t first_row)
      : skipped(int64_t{first_row} * spec.hidden_dim) {
    Random random(99);
    weights = random.values((rows - first_row) * spec.hidden_dim, 1);
  }
  double of(const std::vector<double>& hidden) const {
    double sum = 0;
    for (size_t i = 0; i < weights.size(); ++i)
      sum += weights[i] * hidden[static_cast<size_t>(skipped) + i];
    return sum;
  }
};

HeadGates some_gates(const ModelSpec& spec) {
  HeadGates gates;
  gates.sinks = 2;
  gates.recent = 5;
  Random random(3);
  for (size_t i = 0; i < spec.layers.size(); ++i)
    for (int32_t head = 0; head < spec.layers[i].heads.num_kv_heads; ++head)
      gates.alpha.push_back(0.5f + 0.4f * random.unit());
  gates.alpha[0] = 1.0f;
  gates.alpha[1] = 0.0f;
  return gates;
}

double largest_difference(const std::vector<float>& got, const std::vector<double>& exact) {
  REQUIRE(got.size() <= exact.size());
  double worst = 0;
  const size_t skipped = exact.size() - got.size();
  for (size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::abs(got[i] - exact[skipped + i]));
  return worst;
}

}  // namespace

TEST_CASE("GradientModel: log-probabilities equal RefOps'", "[calibrate][unit][device]") {
  testing::TinyModelOptions options;
  options.attention_bias = GENERATE(false, true);
  options.tied_embedding = options.attention_bias;
  options.rope_divisors = options.attention_bias;
  const auto files = testing::make_tiny_model(options);
  const std::vector<int32_t> tokens = random_tokens(150, 7);

  testing::HarnessOptions harness_options;
  testing::EngineHarness harness(*files, harness_options);
  Request request = testing::make_request(tokens, 1);
  request.sampling.prompt_logprobs = 0;
  const auto expected = harness.generate(std::move(request)).prompt_logprobs;
  REQUIRE(expected.size() == tokens.size() - 1);

  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  GradientModel model(*files, *ops);
  constexpr int32_t kFirst = 40;
  model.forward(tokens, kFirst, nullptr);
  const std::vector<float> logits = model.logits(model.hidden());
  const auto vocab = static_cast<size_t>(files->spec.vocab_size);
  for (size_t row = kFirst; row + 1 < tokens.size(); ++row) {
    const float* begin = logits.data() + (row - kFirst) * vocab;
    double sum = 0;
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(double{begin[i]});
    const auto next = static_cast<size_t>(tokens[row + 1]);
    CHECK(begin[next] - std::log(sum) == Approx(expected[row].chosen.logprob).margin(2e-5));
  }
}

TEST_CASE("GradientModel: gates at 1, and windows as wide as the context, change nothing",
          "[calibrate][unit][device]") {
  const auto files = testing::make_tiny_model(small_options());
  const std::vector<int32_t> tokens = random_tokens(100, 8);
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  GradientModel model(*files, *ops);
  model.forward(tokens, 0, nullptr);
  const std::vector<float> dense = model.hidden();

  HeadGates gates = some_gates(files->spec);
  std::fill(gates.alpha.begin(), gates.alpha.end(), 1.0f);
  model.forward(tokens, 0, &gates);
  CHECK(model.hidden() == dense);

  gates = some_gates(files->spec);
  gates.recent = 98;  // and 2 sinks
  model.forward(tokens, 0, &gates);
  const std::vector<float> wide = model.hidden();
  CHECK(largest_difference(wide, {dense.begin(), dense.end()}) < 1e-5);
  gates.recent = 97;
  model.forward(tokens, 0, &gates);
  CHECK(model.hidden() != wide);
}

TEST_CASE("GradientModel: threads change no bit", "[calibrate][unit]") {
  const auto files = testing::make_tiny_model(small_options());
  const std::vector<int32_t> tokens = random_tokens(130, 9);
  const HeadGates gates = some_gates(files->spec);
  std::vector<float> hidden, d_embedded;
  std::vector<double> d_alpha;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    const auto ops = make_cpu_gradient_ops(pool);
    GradientModel model(*files, *ops);
    model.forward(tokens, 100, &gates);
    std::vector<float> d_input;
    std::vector<double> d_gates;
    model.backward(model.hidden(), {&d_gates, nullptr, &d_input});
    if (threads > 1) {
      CHECK(model.hidden() == hidden);
      CHECK(d_input == d_embedded);
      CHECK(d_gates == d_alpha);
    }
    hidden = model.hidden();
    d_embedded = d_input;
    d_alpha = d_gates;
  }
}

TEST_CASE("GradientModel: gradients equal finite differences in double",
          "[calibrate][unit][device]") {
  auto files = testing::make_tiny_model(small_options());
  files->spec.embedding_scale = 1.5f;
  files->spec.ropes[0].magnitude = 1.2f;
  files->spec.ropes[0].pairing = GENERATE(RopePairing::kAdjacent, RopePairing::kHalves);
  constexpr int64_t kRows = 20;
  constexpr int32_t kFirst = 13;
  constexpr double kStep = 1e-5;
  const std::vector<int32_t> tokens = random_tokens(kRows, 10);
  const Weighted loss(files->spec, kRows, kFirst);
  const DoubleModel exact(*files);
  const std::vector<double> embedded = exact.embed(tokens);
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  GradientModel model(*files, *ops);

  const bool gated = GENERATE(false, true);
  HeadGates gates = some_gates(files->spec);
  const HeadGates* used = gated ? &gates : nullptr;
  model.forward(tokens, kFirst, used);
  CHECK(largest_difference(model.hidden(), exact.hidden(embedded, used)) < 2e-5);
  std::vector<float> d_embedded;
  std::vector<double> d_alpha;
  model.backward(loss.weights, {gated ? &d_alpha : nullptr, nullptr, &d_embedded});

  const auto slope = [&](const auto& loss_at) {
    return (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
  };
  double largest = 0;
  for (const float d : d_embedded) largest = std::max(largest, std::abs(double{d}));
  for (size_t i = 0; i < embedded.size(); i += 7) {
    const double expected = slope([&](double step) {
      std::vector<double> moved = embedded;
      moved[i] += step;
      return loss.of(exact.hidden(moved, used));
    });
    CHECK(d_embedded[i] == Approx(expected).margin(1e-4 * largest));
  }
  for (size_t i = 0; i < d_alpha.size(); ++i) {
    constexpr float kAlphaStep = 0x1p-10f;
    const auto at = [&](float step) {
      HeadGates moved = gates;
      moved.alpha[i] += step;
      return loss.of(exact.hidden(embedded, &moved));
    };
    const double expected = (at(kAlphaStep) - at(-kAlphaStep)) / (2.0 * kAlphaStep);
    CHECK(d_alpha[i] == Approx(expected).epsilon(1e-3).margin(1e-4));
  }
}

TEST_CASE("GradientModel: what the gates read, computed again, changes no bit",
          "[calibrate][unit][device]") {
  const auto files = testing::make_tiny_model(small_options());
  const HeadGates gates = some_gates(files->spec);
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  GradientModel keeps(*files, *ops), computes(*files, *ops);
  computes.set_gate_bytes(0);
  for (const int64_t rows : {60, 130, 90}) {
    const std::vector<int32_t> tokens = random_tokens(rows, 12);
    std::vector<float> kept, computed;
    std::vector<double> d_kept, d_computed;
    keeps.forward(tokens, 50, &gates);
    keeps.backward(keeps.hidden(), {&d_kept, nullptr, &kept});
    computes.forward(tokens, 50, &gates);
    CHECK(computes.hidden() == keeps.hidden());
    computes.backward(computes.hidden(), {&d_computed, nullptr, &computed});
    CHECK(computed == kept);
    CHECK(d_computed == d_kept);
  }
}

TEST_CASE("GradientModel: logits_backward is the transpose of logits",
          "[calibrate][unit][device]") {
  const auto files = testing::make_tiny_model(small_options());
  ThreadPool pool(1);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  const GradientModel model(*files, *ops);
  Random random(4);
  const auto hidden = random.values(3 * files->spec.hidden_dim, 1);
  const auto d_logits = random.values(3 * files->spec.vocab_size, 1);
  const auto dot = [](const std::vector<float>& a, const std::vector<float>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  };
  CHECK(dot(model.logits(hidden), d_logits) ==
        Approx(dot(hidden, model.logits_backward(d_logits))).epsilon(1e-4));
}

TEST_CASE("GradientModel: masking effects equal finite differences in double",
          "[calibrate][unit][device]") {
  auto options = small_options();
  options.num_layers = 2;
  const auto files = testing::make_tiny_model(options);
  constexpr int64_t kRows = 67;
  constexpr int32_t kFirst = 66;  // of the loss
  constexpr int32_t kFirstEffect = 2;
  const std::vector<int32_t> tokens = random_tokens(kRows, 11);
  const Weighted loss(files->spec, kRows, kFirst);
  const DoubleModel exact(*files);
  const std::vector<double> embedded = exact.embed(tokens);
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  GradientModel model(*files, *ops);
  const int32_t num_heads = files->spec.layers[0].heads.num_heads;
  MaskingEffects effects;
  effects.num_blocks = 2;
  effects.first_row = kFirstEffect;
  effects.sums.resize(static_cast<size_t>(2 * num_heads * 4));
  model.forward(tokens, kFirst, nullptr);
  model.backward(loss.weights, {nullptr, &effects, nullptr});

  // One head of each layer, two rows of the second block and all of the first block's columns.
  const auto effect = [&](size_t layer, int32_t head, int32_t row, int32_t column) {
    constexpr double kStep = 1e-3;
    const auto at = [&](double amount) {
      return loss.of(exact.hidden(embedded, nullptr, MaskStep{layer, head, row, column, amount}));
    };
    return std::abs(at(kStep) - at(-kStep)) / (2 * kStep);
  };
  for (const auto& [layer, head] : {std::pair<size_t, int32_t>{0, 1}, {1, 2}}) {
    const int64_t map = static_cast<int64_t>(layer) * num_heads + head;
    double near = 0, far = 0;
    for (int32_t row = 64; row < kRows; ++row) {
      if (layer == 1 && row < kFirst) continue;  // the last layer's loss is behind its row alone
      for (int32_t column = 0; column <= row; ++column)
        (column < 64 ? far : near) += effect(layer, head, row, column);
    }
    CHECK(effects.at(map, 1, 0) == Approx(far).epsilon(1e-2));
    CHECK(effects.at(map, 1, 1) == Approx(near).epsilon(1e-2));
    CHECK(effects.at(map, 0, 1) == 0);
    CHECK((effects.at(map, 0, 0) > 0) == (layer == 0));
  }
}

TEST_CASE("GradientModel: a dataflow that it does not reverse is refused", "[calibrate][unit]") {
  ThreadPool pool(1);
  const auto ops = make_cpu_gradient_ops(pool);
  const auto files = testing::make_tiny_model(small_options());
  const auto refused = [&](auto&& change) {
    ModelSpec& spec = files->spec;
    const ModelSpec before = spec;
    change(spec);
    CHECK_THROWS_WITH(GradientModel(*files, *ops),
                      Catch::Contains("not supported for architecture"));
    spec = before;
    CHECK_NOTHROW(GradientModel(*files, *ops));
  };
  refused([](ModelSpec& spec) { spec.norm_after = true; });
  refused([](ModelSpec& spec) { spec.gate = Gate::kGeluTanh; });
  refused([](ModelSpec& spec) { spec.qk_norm = QkNorm::kHead; });
  refused([](ModelSpec& spec) { spec.layers[1].window = 16; });
  refused([](ModelSpec& spec) { spec.attention_softcap = 50; });
  refused([](ModelSpec& spec) { spec.residual_scale = 0.5f; });
}
