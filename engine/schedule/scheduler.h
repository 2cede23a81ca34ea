// Scheduler: who runs in the next step, and the only place that promises pages. Pure host code.
// Engine thread only.
//
// Order: decodes first (oldest first), then prefill chunks within the rest of the budget, then
// admission in order of arrival. A full pool preempts the latest arrived: its pages go back, it
// waits at its old place and recomputes (mostly from the prefix index).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/schedule/prefill_pacer.h"
#include "engine/schedule/step_plan.h"

namespace headwater {

class Scheduler {
 public:
  struct Limits {
    int32_t max_num_seqs = 0;
    int32_t max_num_batched_tokens = 0;
    int32_t max_logit_rows = 0;
    double max_itl_stretch = 2.0;
    int32_t long_after = 0;  // > 0: a sequence of more tokens is a long one (ModelSpec)
  };
  // kv is not owned.
  Scheduler(kv::KvManager& kv, const Limits& limits);

  void add(std::unique_ptr<Sequence> seq);
  // Runs at once over the parent's pages if a place is free, else waits and recomputes.
  void add_fork(std::unique_ptr<Sequence> seq, const Sequence& parent);

  // Fills the plan; it is empty if nothing can run. The step before may still be under way, if its
  // rows are committed: what it draws is known to the device.
  void next_step(StepPlan& plan);
  // After an empty plan, with no step under way: who keeps all others from running, if any wait. It
  // is alone, and yet its pages cannot be had: nobody will ever give any back.
  Sequence* stuck() const {
    return running_.empty() && !waiting_.empty() ? waiting_.front().get() : nullptr;
  }
  // Once the plan's tokens are known and it ran or was enqueued: its rows are in the pages before
  // any later step reads them.
  void commit_rows(const StepPlan& plan);
  void observe(const StepPlan& plan, double seconds);
  // Gives its pages back and hands the sequence over.
  std::unique_ptr<Sequence> remove(Sequence& seq);

  bool idle() const { return waiting_.empty() && running_.empty(); }
  const std::deque<std::unique_ptr<Sequence>>& waiting() const { return waiting_; }
  const std::vector<std::unique_ptr<Sequence>>& running() const { return running_; }
  uint64_t num_preemptions() const { return num_preemptions_; }
  uint64_t prefix_query_tokens() const { return prefix_query_tokens_; }
  uint64_t prefix_hit_tokens() const { return prefix_hit_tokens_; }

 private:
  // The first waiting sequence runs from now on, if a place and pages are free. Returns the rows
  // that it got in this step; 0: nobody was admitted.
  int32_t admit(StepPlan& plan, int32_t max_rows);
  bool is_long(const Sequence& seq) const {
    return limits_.long_after > 0 && seq.num_tokens() > limits_.long_after;
  }
  int32_t max_step_rows() const { return limits_.max_num_batched_tokens; }
  // Plans up to max_rows of the sequence, preempting later ones for pages. Returns the rows; 0: it
  // was itself preempted, or no logit row is left.
  int32_t place(Sequence& seq, int32_t max_rows, StepPlan& plan);
  void preempt(Sequence& seq, StepPlan& plan);
  void wait(std::unique_ptr<Sequence> seq);

  kv::KvManager& kv_;
  Limits limits_;
  PrefillPacer pacer_;
  std::deque<std::unique_ptr<Sequence>> waiting_;   // by order
  std::vector<std::unique_ptr<Sequence>> running_;  // by order
  uint64_t num_preemptions_ = 0;
  uint64_t prefix_query_tokens_ = 0;
  uint64_t prefix_hit_tokens_ = 0;
};

}  // namespace headwater
