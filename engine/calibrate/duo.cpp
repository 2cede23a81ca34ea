#include "engine/calibrate/duo.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/base/check.h"

namespace headwater {
namespace {

// One step of Adam (arXiv 1412.6980), without weight decay; the steps before it are counted.
void adam_step(const std::vector<double>& gradient, double rate, DuoGates& gates) {
  constexpr double kMeanDecay = 0.9, kSquareDecay = 0.999, kEps = 1e-8;
  const auto step = static_cast<double>(gates.distortion.size() + 1);
  for (size_t i = 0; i < gradient.size(); ++i) {
    double& mean = gates.mean[i];
    double& square = gates.square[i];
    mean = kMeanDecay * mean + (1 - kMeanDecay) * gradient[i];
    square = kSquareDecay * square + (1 - kSquareDecay) * gradient[i] * gradient[i];
    const double mean_now = mean / (1 - std::pow(kMeanDecay, step));
    const double square_now = square / (1 - std::pow(kSquareDecay, step));
    const double moved = gates.alpha[i] - rate * mean_now / (std::sqrt(square_now) + kEps);
    gates.alpha[i] = static_cast<float>(std::clamp(moved, 0.0, 1.0));
  }
}

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

void optimize_gates(GradientModel& model,
                    std::span<const CalibrationSample> samples,
                    const DuoOptions& options,
                    DuoGates& gates,
                    const std::function<bool(const DuoGates&)>& keep_going) {
  HW_CHECK(!samples.empty() && options.steps > 0, "samples and steps", samples.size());
  const ModelSpec& spec = model.spec();
  const int64_t cols = spec.hidden_dim;
  const size_t num_gates =
      spec.layers.size() * static_cast<size_t>(spec.layers[0].heads.num_kv_heads);
  if (gates.alpha.empty()) {
    gates.alpha.assign(num_gates, 1.0f);
    gates.pull = gates.mean = gates.square = std::vector<double>(num_gates);
  }
  HW_CHECK(gates.alpha.size() == num_gates, "gates of this model", gates.alpha.size());
  std::vector<std::vector<float>> exact(samples.size());

  while (static_cast<int32_t>(gates.distortion.size()) < options.steps) {
    const auto step = static_cast<int32_t>(gates.distortion.size());
    const size_t idx = static_cast<size_t>(step) % samples.size();
    const CalibrationSample& sample = samples[idx];
    HW_CHECK(!sample.rows.empty(), "a sample without answers", idx);
    const int32_t first = sample.rows[0];
    if (exact[idx].empty()) {
      model.forward(sample.tokens, first, nullptr);
      exact[idx] = pick_rows(model.hidden(), sample.rows, cols);
    }
    const HeadGates mix{gates.alpha, options.sinks, options.recent};
    model.forward(sample.tokens, first, &mix);
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
      gates.pull[i] -= gradient[i] / options.steps;
      if (gates.alpha[i] > 0.0f)
        gradient[i] += options.regularization / static_cast<double>(num_gates);
    }
    adam_step(gradient, options.learning_rate * duo_schedule(step, options.steps), gates);
    gates.distortion.push_back(distortion);
    if (keep_going && !keep_going(gates)) return;
  }
}

HeadTable duo_table(const DuoGates& gates, const HeadTableModel& model, double full) {
  HeadTable table;
  table.method = "duo";
  table.model = model;
  table.heads.assign(gates.alpha.size(), HeadTable::kCompressed);
  table.ranking = gates.ranking();
  const auto count = static_cast<size_t>(
      std::ceil(std::clamp(full, 0.0, 1.0) * static_cast<double>(gates.alpha.size()) - 1e-9));
  for (size_t i = 0; i < count; ++i)
    table.heads[static_cast<size_t>(table.ranking[i])] = HeadTable::kFull;
  table.scores["gate"] = {gates.alpha.begin(), gates.alpha.end()};
  table.scores["pull"] = gates.pull;
  return table;
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
