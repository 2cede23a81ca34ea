// EngineHarness: a model, a device and an EngineCore that a test steps by hand; Collected: what a
// request's sink heard.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine_core.h"
#include "engine/model/loaded_model.h"
#include "engine/model/model.h"
#include "tests/support/test_device.h"

namespace headwater::testing {

struct Collected {
  struct Choice {
    std::vector<int32_t> tokens;
    std::vector<TokenLogprobs> logprobs;
    FinishReason finish = FinishReason::kNone;
    std::optional<int32_t> stop_token;
    Status error;
    Usage usage;
    int terminal_events = 0;
  };
  std::vector<Choice> choices;
  std::vector<TokenLogprobs> prompt_logprobs;

  bool done() const;
};

struct HarnessOptions {
  TestDevice device{"ref"};
  int32_t threads = 2;
  int64_t kv_pages = 4096;  // of one head each
  int32_t page_tokens = 16;
  int32_t max_num_seqs = 8;
  int32_t max_num_batched_tokens = 64;
  int32_t max_model_len = 1024;
  std::vector<kv::RetentionRule> rules = {};  // [layers, kv heads]; empty = dense
  bool faithful = false;
  bool prefix_caching = true;
  bool check_invariants = true;
  double max_itl_stretch = 2.0;
  bool overlap = false;  // always on a GPU
};

class EngineHarness {
 public:
  // files is not owned.
  EngineHarness(const LoadedModel& files, const HarnessOptions& options);

  // The sink listens while `listens` says so (default: always).
  std::shared_ptr<Collected> add(Request request, std::function<bool()> listens = {});
  void run();  // until idle
  // One request alone, to its end.
  Collected generate(Request request);

  EngineCore& core() { return *core_; }
  Ops& ops() { return *ops_; }
  Model& model() { return *model_; }

 private:
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<EngineCore> core_;
  RequestId next_id_ = 1;
};

// Of a logprob of the tiny model, where the GPU is not exact. What the arithmetic itself costs:
// RefOps with factors of products cut to TF32 and pages of f16 is up to 0.025 from RefOps in the
// cases of test_cuda_engine (shards; the others 0.011 to 0.023). An H100, which also rounds queries
// and weights of attention to f16, was up to 0.029.
inline constexpr float kCudaTolerance = 4e-2f;
inline float tolerance(const TestDevice& device) { return device.exact ? 0 : kCudaTolerance; }

// What a device promises of one request in another batch: the same bits. Where it is
// not exact, the same distributions within what its arithmetic costs, up to the first position
// where another token was drawn.
void require_same(const TestDevice& device, const Collected& a, const Collected& b);

// Greedy, max_tokens tokens whatever comes.
Request make_request(std::vector<int32_t> prompt, int32_t max_tokens);

}  // namespace headwater::testing
