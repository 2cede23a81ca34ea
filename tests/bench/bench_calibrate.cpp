// bench_calibrate [SHAPE [WEIGHTS]]: what `headwater calibrate --method razor` takes with its
// defaults on the first GPU (or the CPU), for a model of that shape with random weights.
#include <chrono>
#include <cstdio>
#include <numeric>

#include "engine/calibrate/methods.h"
#include "engine/calibrate/razor_scores.h"
#include "engine/offline/random_model.h"
#include "kernels/make_ops.h"

int main(int argc, char** argv) {
  using namespace headwater;  // NOLINT: a program of one function
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const CalibrationOptions options;
  const int32_t num_tokens = options.block_tokens * options.repeats;
  const auto random =
      make_random_model(argc > 1 ? argv[1] : "llama3-8b", argc > 2 ? argv[2] : "f16", num_tokens);
  ThreadPool pool(0);
  const auto ops = make_ops("auto", pool);
  const Clock::time_point start = Clock::now();
  Model model(random->files, *ops, {512, 128});
  Probe probe(model, *ops);
  const double load_seconds = seconds_since(start);
  std::vector<int32_t> ids(static_cast<size_t>(random->files.spec.vocab_size));
  std::iota(ids.begin(), ids.end(), 0);
  const std::vector<int32_t> tokens =
      repeated_block(ids, -1, options.block_tokens, options.repeats, options.seed);
  const Clock::time_point read = Clock::now();
  choose_razor(
      razor_scores(probe, tokens, options.block_tokens, false), options.induction, options.echo);
  std::printf("%s: weights %.1f s, %d tokens read and scored %.1f s\n",
              std::string(ops->description()).c_str(),
              load_seconds,
              num_tokens,
              seconds_since(read));
}
