// EngineCore: the engine without its thread: schedule -> execute -> commit -> publish. Everything
// here runs on one thread (the engine thread, or a test).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "engine/execute/executor.h"
#include "engine/schedule/scheduler.h"
#include "engine/stats.h"

namespace headwater {

class EngineCore {
 public:
  struct Options {
    Scheduler::Limits limits;
    kv::KvManager::Options kv;
    int32_t max_model_len = 0;
    std::vector<int32_t> eos_token_ids;
    bool dense = true;      // no group ever drops a page
    bool faithful = false;  // prompts see and hold everything until they end
    uint64_t seed = 0;      // 0 = random
    bool check_invariants = false;
  };
  // model, ops and pool are not owned.
  EngineCore(
      Model& model, Ops& ops, ThreadPool& pool, kv::KvGeometry geometry, const Options& options);
  ~EngineCore();

  // The request was validated (Engine::submit).
  void add(Request request);
  // All choices that have not ended end now: kAbort if the status is ok (the client left), or says
  // cancelled, deadline or unavailable; kError for any other.
  void end(RequestId id, const Status& why);
  void end_all(const Status& why);
  // One choice ends with kStop: its client has all it wants.
  void stop_choice(RequestId id, int32_t choice);

  // One step. False if there was nothing to do. Exceptions are device failures: the caller answers
  // with end_all() and stops.
  bool step();
  bool idle() const { return scheduler_.idle(); }
  // The earliest deadline of anything not ended.
  std::optional<Clock::time_point> next_deadline() const;

  int64_t num_waiting_requests() const;
  EngineStats stats() const;
  const kv::KvManager& kv() const { return kv_; }
  const Scheduler& scheduler() const { return scheduler_; }
  void check() const;

 private:
  struct Draw {  // one token to sample
    Sequence* seq;
    std::vector<float> own_row;  // a copy for choices that share a row
    float* row;
    SampledToken sampled;
  };

  int32_t kept_tokens(const AttentionRequest& asked) const;
  std::unique_ptr<Sequence> make_sequence(const std::shared_ptr<const Request>& request,
                                          int32_t choice,
                                          uint64_t seed);
  void expire(Clock::time_point now);
  void collect_prompt_logprobs(const PlannedRows& rows, const Matrix& logits);
  void plan_draws(const PlannedRows& rows, const Matrix& logits, std::vector<Draw>& draws);
  void publish(Draw& draw, Clock::time_point now);
  void finish(Sequence& seq, TokenEvent event);
  void end_sequence(Sequence& seq, const Status& why);
  bool deliver(Sequence& seq, TokenEvent event);
  void record_finish(const Sequence& seq, FinishReason reason, Clock::time_point now);
  template <typename Visit>
  void for_each_sequence(Visit&& visit) const;

  Options options_;
  Model& model_;
  ThreadPool& pool_;
  kv::KvManager kv_;
  Executor executor_;
  Scheduler scheduler_;
  StepPlan plan_;
  std::vector<SamplerScratch> scratch_;  // [num_threads]
  std::vector<RequestId> deserted_;      // whose sink said that nobody listens
  std::mt19937_64 random_;
  uint64_t next_order_ = 0;
  EngineStats stats_;
};

}  // namespace headwater
