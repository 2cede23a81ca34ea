// Executor: runs plans on the device. Owns the KV arena and the step's device buffers; decides
// nothing. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/model.h"
#include "engine/schedule/step_plan.h"
#include "kvcache/kv_manager.h"

namespace headwater {

class Executor {
 public:
  // model, ops and kv are not owned. Allocates arena_bytes on the device, and page tables where its
  // memory is its own: kv then records changes, and every step carries them over. draws: the device
  // draws tokens, and two steps may be under way; the model has two logit buffers.
  Executor(
      Model& model, Ops& ops, kv::KvManager& kv, int64_t arena_bytes, int32_t max_seqs, bool draws);

  // Behind the steps enqueued before, of which the last may still be under way.
  void enqueue(const StepPlan& plan);
  // Returns when the oldest step that was not waited for is done. What the device drew,
  // [plan.num_logit_rows], kUndecided where the host draws; empty if it draws nothing. Valid until
  // the next enqueue but one, as are the step's logits.
  std::span<const int32_t> wait();
  // Brings these rows, ascending, of the logits of the step last waited for to the host, as the
  // device left them.
  // [plan.num_logit_rows, vocab_size], of which rows that were never asked for are not set.
  Matrix fetch_logits(std::span<const int32_t> rows);

 private:
  struct Slot {   // of one step under way
    Buffer step;  // its arrays, packed
    Buffer host_tokens;
    Matrix logits;  // on the device
    int64_t mark = 0;
  };
  Slot& slot(int64_t step) { return slots_[draws_ ? step % 2 : 0]; }

  Model& model_;
  Ops& ops_;
  kv::KvManager& kv_;
  bool draws_;
  Buffer arena_, groups_, heads_;
  Buffer tables_;         // none: kv's own
  Buffer tops_, tokens_;  // of each logit row of the last step
  std::vector<std::byte> host_step_;
  Buffer host_logits_;
  bool compensates_ = false;  // some heads do
  Slot slots_[2];
  int64_t num_enqueued_ = 0, num_done_ = 0;
};

}  // namespace headwater
