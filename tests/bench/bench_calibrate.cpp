// bench_calibrate [SHAPE [WEIGHTS [METHOD [STEPS]]]]: what `headwater calibrate` takes
// with its defaults on the first GPU (or the CPU), for a model of that shape with random weights.
// METHOD: razor, duo or moa. STEPS: of duo, or texts of moa, if not the default.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "engine/calibrate/duo.h"
#include "engine/calibrate/methods.h"
#include "engine/calibrate/moa.h"
#include "engine/calibrate/probe.h"
#include "engine/calibrate/razor_scores.h"
#include "engine/offline/random_model.h"
#include "kernels/make_ops.h"

namespace {

using namespace headwater;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void razor(const RandomModel& random) {
  const CalibrationOptions options;
  ThreadPool pool(0);
  const auto ops = make_ops("auto", pool);
  const Clock::time_point start = Clock::now();
  Model model(random.files, *ops, {512, 128});
  Probe probe(model, *ops);
  const double load_seconds = seconds_since(start);
  std::vector<int32_t> ids(static_cast<size_t>(random.files.spec.vocab_size));
  std::iota(ids.begin(), ids.end(), 0);
  const std::vector<int32_t> tokens =
      repeated_block(ids, -1, options.block_tokens, options.repeats, options.seed);
  const Clock::time_point read = Clock::now();
  choose_razor(
      razor_scores(probe, tokens, options.block_tokens, false), options.induction, options.echo);
  std::printf("%s: weights %.1f s, %zu tokens read and scored %.1f s\n",
              std::string(ops->description()).c_str(),
              load_seconds,
              tokens.size(),
              seconds_since(read));
}

// Random tokens of the default lengths, the last hundred of which count.
std::vector<CalibrationSample> texts(int32_t vocab_size, int32_t count) {
  const CalibrationOptions options;
  std::vector<CalibrationSample> samples;
  for (int32_t i = 0; i < count; ++i) {
    CalibrationSample sample;
    const int32_t length =
        options.min_tokens + (options.max_tokens - options.min_tokens) * i / std::max(1, count - 1);
    for (int32_t t = 0; t < length; ++t)
      sample.tokens.push_back(static_cast<int32_t>((int64_t{t} * 7919 + i) % vocab_size));
    for (int32_t row = length - 100; row + 1 < length; ++row) sample.rows.push_back(row);
    samples.push_back(std::move(sample));
  }
  return samples;
}

// `count` of the samples, of all lengths.
std::vector<CalibrationSample> spread(const std::vector<CalibrationSample>& samples,
                                      int32_t count) {
  std::vector<CalibrationSample> some;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i)
    some.push_back(samples[(2 * i + 1) * samples.size() / (2 * static_cast<size_t>(count))]);
  return some;
}

// Operations of products with weights and of attention (half of the square), forward or both ways.
double operations(const RandomModel& random, const CalibrationSample& sample, bool both_ways) {
  const ModelSpec& spec = random.files.spec;
  const auto n = static_cast<double>(sample.tokens.size());
  const HeadShape& heads = spec.layers[0].heads;
  const double weights = 2.0 * static_cast<double>(random.num_matrix_parameters) * n;
  const double scores = n * n * heads.num_heads * heads.head_dim *  // of one product
                        static_cast<double>(spec.layers.size());
  return both_ways ? 2 * weights + 7 * scores : weights + 2 * scores;
}

void gradients(const RandomModel& random, const std::string& method, int32_t steps) {
  ThreadPool pool(0);
  const bool gpu = cuda_obstacle().empty();
  const auto ops = make_gradient_ops(gpu ? "cuda" : "cpu", pool);
  const Clock::time_point load = Clock::now();
  GradientModel model(random.files, *ops);
  const double load_seconds = seconds_since(load);
  const int32_t num_texts = CalibrationOptions{}.num_prompts;
  const auto samples = texts(random.files.spec.vocab_size, num_texts);
  double done = 0;
  const Clock::time_point start = Clock::now();
  if (method == "duo") {
    DuoOptions options;
    options.steps = steps;
    const std::vector<CalibrationSample> used = spread(samples, std::min(steps, num_texts));
    DuoGates gates;
    optimize_gates(model, used, options, gates);
    for (size_t i = 0; i < static_cast<size_t>(steps); ++i)
      done += operations(random, used[i % used.size()], true);
    for (const CalibrationSample& sample : used) done += operations(random, sample, false);
  } else {
    for (const CalibrationSample& sample : spread(samples, steps)) {
      profile_effects(model, std::span(&sample, 1), GroupImportance::kSum, false);
      done += operations(random, sample, true);
    }
  }
  const double seconds = seconds_since(start);
  std::printf("%s %s: weights %.1f s, %d steps %.1f s, %.0f TFLOP/s; %.1f GiB of the device free\n",
              method.c_str(),
              gpu ? "cuda" : "cpu",
              load_seconds,
              steps,
              seconds,
              done / seconds / 1e12,
              static_cast<double>(gpu ? ops->free_bytes() : 0) / (int64_t{1} << 30));
}

// The answers that moa asks the model for first, 64 tokens each.
void answers(const RandomModel& random, int32_t count) {
  constexpr int32_t kAnswerTokens = 64;
  ThreadPool pool(0);
  const auto ops = make_ops("auto", pool);
  const Clock::time_point start = Clock::now();
  Model model(random.files, *ops, {512, 128});
  Probe probe(model, *ops);
  const double load_seconds = seconds_since(start);
  const Clock::time_point read = Clock::now();
  const std::vector<kv::RetentionRule> everything(static_cast<size_t>(probe.num_heads()));
  for (const CalibrationSample& sample : texts(random.files.spec.vocab_size, count)) {
    ProbePrompt prompt = probe.read(sample.tokens, kAnswerTokens);
    probe.greedy(prompt, everything, kAnswerTokens, {});
  }
  std::printf("answers: weights %.1f s, %d prompts read and answered %.1f s\n",
              load_seconds,
              count,
              seconds_since(read));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string method = argc > 3 ? argv[3] : "razor";
  const CalibrationOptions options;
  const int32_t num_tokens = std::max(options.block_tokens * options.repeats, options.max_tokens);
  const auto random =
      make_random_model(argc > 1 ? argv[1] : "llama3-8b", argc > 2 ? argv[2] : "f16", num_tokens);
  const int32_t most = method == "duo" ? options.duo_steps : options.num_prompts;
  const int32_t steps = argc > 4 ? std::atoi(argv[4]) : most;
  if (method == "razor") {
    razor(*random);
    return 0;
  }
  if (method == "moa") answers(*random, steps);
  gradients(*random, method, steps);
}
