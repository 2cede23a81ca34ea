// EngineCore: the engine without its thread: schedule -> execute -> commit -> publish. Everything
// here runs on one thread (the engine thread, or a test).
//
// With Options::overlap the device draws, and the host is one step behind:
//
//   device   |  step n        |  step n+1      |  step n+2
//   host      plan, enqueue n+1 | publish n | plan, enqueue n+2 | publish n+1
//
// A sequence whose token is under way is planned as if it were known (Sequence::tokens). Who turns
// out to have ended with step n, or whose token the device could not tell, leaves step n+1: that
// row is computed for nothing. A step in which the host draws is published before the next is
// planned.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
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
    bool overlap = false;  // the model has two logit buffers
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

  // Enqueues a step, and publishes the one that ended. False if there was nothing to do. Exceptions
  // are device failures: the caller answers with end_all() and stops.
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
  struct Draw {     // one token to sample
    Sequence* seq;  // null: it left meanwhile
    int32_t logit_row;
    bool shares_row;                      // with the draw of choice 0
    std::optional<SampledToken> sampled;  // none: it takes the whole row
    std::vector<float> own_row;           // of which this is a copy, where it is shared
  };
  struct Step {
    StepPlan plan;
    std::vector<Draw> draws;
    Clock::time_point start;
  };

  int32_t kept_tokens(const AttentionRequest& asked) const;
  std::unique_ptr<Sequence> make_sequence(const std::shared_ptr<const Request>& request,
                                          int32_t choice,
                                          uint64_t seed);
  void expire(Clock::time_point now);
  void collect_prompt_logprobs(const PlannedRows& rows);
  void plan_draws(const PlannedRows& rows, std::vector<Draw>& draws);
  void commit(Step& step);
  // next: the step that is under way behind it, if any.
  void complete(Step& step, Step* next);
  void sample(Step& step, std::span<const int32_t> drawn, Step* next);
  static void leave(Step& step, const Sequence& seq);
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
  Step steps_[2];
  Step* under_way_ = nullptr;  // its tokens are not known
  Clock::time_point last_completed_;
  std::vector<SamplerScratch> scratch_;  // [num_threads]
  std::vector<RequestId> deserted_;      // whose sink said that nobody listens
  std::mt19937_64 random_;
  uint64_t next_order_ = 0;
  EngineStats stats_;
};

}  // namespace headwater
