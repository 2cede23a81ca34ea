// Executor: runs a plan on the device. Owns the KV arena and the step's device buffers; decides
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
  // memory is its own: kv then records changes, and every run carries them over.
  Executor(Model& model, Ops& ops, kv::KvManager& kv, int64_t arena_bytes, int32_t max_seqs);

  // Logits on the host, [plan.num_logit_rows, vocab_size], valid until the next run.
  Matrix run(const StepPlan& plan);

 private:
  Model& model_;
  Ops& ops_;
  kv::KvManager& kv_;
  Buffer arena_, groups_, heads_;
  Buffer tables_;  // none: kv's own
  Buffer step_;    // the arrays of the step at hand, packed
  std::vector<std::byte> host_step_;
  bool compensates_ = false;  // some heads do
  std::vector<float> host_logits_;
};

}  // namespace headwater
