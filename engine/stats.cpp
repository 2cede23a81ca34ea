#include "engine/stats.h"

namespace headwater {
namespace {

const std::vector<double> kTimeToFirstToken = {.001, .005, .01, .02, .04, .06, .08, .1,
                                               .25,  .5,   .75, 1,   2.5, 5,   7.5, 10,
                                               20,   40,   80,  160, 640, 2560};
const std::vector<double> kTokenInterval = {
    .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80};
const std::vector<double> kRequestLatency = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                             30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kTokensPerStep = {
    1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
const std::vector<double> kChoices = {1, 2, 5, 10, 20};

std::vector<double> one_two_five(int64_t max) {
  std::vector<double> edges;
  for (int64_t decade = 1;; decade *= 10) {
    for (const int64_t step : {1, 2, 5}) {
      if (step * decade > max) return edges;
      edges.push_back(static_cast<double>(step * decade));
    }
  }
}

}  // namespace

EngineStats initial_stats(int32_t max_model_len) {
  EngineStats stats;
  stats.time_to_first_token_s = Histogram(kTimeToFirstToken);
  stats.inter_token_latency_s = Histogram(kTokenInterval);
  stats.time_per_output_token_s = Histogram(kTokenInterval);
  for (Histogram* latency : {&stats.e2e_latency_s,
                             &stats.queue_time_s,
                             &stats.prefill_time_s,
                             &stats.decode_time_s,
                             &stats.inference_time_s}) {
    *latency = Histogram(kRequestLatency);
  }
  for (Histogram* tokens : {&stats.prompt_tokens_per_request,
                            &stats.generation_tokens_per_request,
                            &stats.max_tokens_per_request}) {
    *tokens = Histogram(one_two_five(max_model_len));
  }
  stats.tokens_per_step = Histogram(kTokensPerStep);
  stats.choices_per_request = Histogram(kChoices);
  return stats;
}

}  // namespace headwater
