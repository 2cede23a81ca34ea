#include "engine/calibrate/duo.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/base/check.h"

namespace headwater {
namespace {

// Adam (arXiv 1412.6980) without weight decay.
class Adam {
 public:
  explicit Adam(size_t size) : mean_(size), square_(size) {}

  void step(const std::vector<double>& gradient, double rate, std::vector<float>& values) {
    constexpr double kMeanDecay = 0.9, kSquareDecay = 0.999, kEps = 1e-8;
    ++steps_;
    for (size_t i = 0; i < values.size(); ++i) {
      mean_[i] = kMeanDecay * mean_[i] + (1 - kMeanDecay) * gradient[i];
      square_[i] = kSquareDecay * square_[i] + (1 - kSquareDecay) * gradient[i] * gradient[i];
      const double mean = mean_[i] / (1 - std::pow(kMeanDecay, steps_));
      const double square = square_[i] / (1 - std::pow(kSquareDecay, steps_));
      values[i] -= static_cast<float>(rate * mean / (std::sqrt(square) + kEps));
    }
  }

 private:
  std::vector<double> mean_, square_;
  int32_t steps_ = 0;
};

// The rows that count, of hidden states that begin with the first of them.
std::vector<float> pick_rows(const std::vector<float>& hidden,
                             std::span<const int32_t> rows,
                             int64_t cols) {
  std::vector<float> out;
  for (const int32_t row : rows) {
    const auto begin = hidden.begin() + (row - rows[0]) * cols;
    out.insert(out.end(), begin, begin + cols);
  }
  return out;
}

}  // namespace

double duo_schedule(int32_t step, int32_t steps) {
  constexpr double kRamp = 0.2, kLeast = 0.1;
  const double ramp = std::max(1.0, kRamp * steps);
  const double nearest = std::min(step + 1.0, static_cast<double>(steps - step));
  return kLeast + (1 - kLeast) * std::min(1.0, nearest / ramp);
}

std::vector<int32_t> DuoGates::ranking() const {
  std::vector<int32_t> order(alpha.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const auto i = static_cast<size_t>(a), j = static_cast<size_t>(b);
    return alpha[i] != alpha[j] ? alpha[i] > alpha[j] : pull[i] > pull[j];
  });
  return order;
}

DuoGates optimize_gates(
    GradientModel& model,
    std::span<const CalibrationSample> samples,
    const DuoOptions& options,
    const std::function<void(int32_t step, int32_t steps, double distortion)>& progress) {
  HW_CHECK(!samples.empty() && options.steps > 0, "samples and steps", samples.size());
  const ModelSpec& spec = model.spec();
  const int64_t cols = spec.hidden_dim;
  const size_t num_gates =
      spec.layers.size() * static_cast<size_t>(spec.layers[0].heads.num_kv_heads);
  HeadGates gates{std::vector<float>(num_gates, 1.0f), options.sinks, options.recent};
  std::vector<std::vector<float>> exact(samples.size());
  Adam adam(num_gates);
  DuoGates result;
  result.pull.resize(num_gates);

  for (int32_t step = 0; step < options.steps; ++step) {
    const size_t idx = static_cast<size_t>(step) % samples.size();
    const CalibrationSample& sample = samples[idx];
    HW_CHECK(!sample.rows.empty(), "a sample without answers", idx);
    const int32_t first = sample.rows[0];
    if (exact[idx].empty()) {
      model.forward(sample.tokens, first, nullptr);
      exact[idx] = pick_rows(model.hidden(), sample.rows, cols);
    }
    model.forward(sample.tokens, first, &gates);
    const std::vector<float> all = model.hidden();
    const std::vector<float> mixed = pick_rows(all, sample.rows, cols);
    std::vector<float> d_hidden(all.size(), 0.0f);
    double distortion = 0;
    const auto count = static_cast<double>(mixed.size());
    for (size_t r = 0; r < sample.rows.size(); ++r)
      for (int64_t c = 0; c < cols; ++c) {
        const auto i = static_cast<size_t>(static_cast<int64_t>(r) * cols + c);
        const double change = double{mixed[i]} - exact[idx][i];
        distortion += change * change / count;
        d_hidden[static_cast<size_t>((sample.rows[r] - first) * cols + c)] =
            static_cast<float>(2 * change / count);
      }
    std::vector<double> gradient;
    model.backward(d_hidden, {&gradient, nullptr, nullptr});
    for (size_t i = 0; i < num_gates; ++i) {
      result.pull[i] -= gradient[i] / options.steps;
      if (gates.alpha[i] > 0.0f)
        gradient[i] += options.regularization / static_cast<double>(num_gates);
    }
    adam.step(gradient, options.learning_rate * duo_schedule(step, options.steps), gates.alpha);
    for (float& alpha : gates.alpha) alpha = std::clamp(alpha, 0.0f, 1.0f);
    result.distortion.push_back(distortion);
    if (progress) progress(step + 1, options.steps, distortion);
  }
  result.alpha = std::move(gates.alpha);
  return result;
}

std::string duo_tsv(const std::vector<float>& alpha, int32_t num_kv_heads) {
  std::string text;
  for (size_t i = 0; i < alpha.size(); ++i) {
    char number[32];
    std::snprintf(number, sizeof(number), "%.6f", double{alpha[i]});
    text += number;
    text += (i + 1) % static_cast<size_t>(num_kv_heads) == 0 ? '\n' : '\t';
  }
  return text;
}

std::string duo_config(const DuoOptions& options) {
  char text[256];
  std::snprintf(text,
                sizeof(text),
                "{\"sink_size\": %d, \"recent_size\": %d, \"num_steps\": %d, \"lr\": %g, "
                "\"reg_weight\": %g}\n",
                options.sinks,
                options.recent,
                options.steps,
                options.learning_rate,
                options.regularization);
  return text;
}

}  // namespace headwater
