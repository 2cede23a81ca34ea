// Speed of a model on a device, without a server, a tokenizer or a file: prefill and decode as the
// engine runs them (one step after the other, graphs where the device has them), without sampling.
// Every sequence is dense. The caller's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/model/model.h"
#include "engine/offline/random_model.h"

namespace headwater {

struct OfflineResult {
  int32_t batch = 0;
  int32_t prompt = 0;     // tokens prefilled, of each sequence; 0: decode
  int32_t generated = 0;  // tokens decoded, of each sequence; 0: prefill
  int32_t depth = 0;      // tokens that were there before
  double seconds = 0;     // median of the repetitions
  double slowest_seconds = 0;
  int64_t bytes = 0;  // that must be read: weights once a step, KV of every sequence once a step
  double flops = 0;   // products with weights, and causal attention
  double tokens_per_second() const { return batch * double(prompt + generated) / seconds; }
};

class OfflineBench {
 public:
  // model and ops are not owned. max_tokens: of all sequences together.
  OfflineBench(const RandomModel& model, Ops& ops, int32_t max_rows, int64_t max_tokens);

  OfflineResult prefill(int32_t batch, int32_t tokens, int repetitions);
  OfflineResult decode(int32_t batch, int32_t depth, int32_t tokens, int repetitions);

  // Ceilings of the device, measured through Ops.
  double copy_bytes_per_second();     // device memory to itself, read plus written
  double product_flops_per_second();  // f16 weights, as large as they get

 private:
  // Batch sequences of `capacity` tokens, one behind the other in the arena.
  void lay_out(int32_t batch, int32_t capacity);
  // `rows` consecutive positions of one sequence, or (rows == 0) the next of each of `batch`.
  void step(int32_t seq, int32_t rows, int32_t batch, int32_t position);

  const RandomModel& random_;
  Ops& ops_;
  Model model_;
  PageShape page_;
  int64_t max_pages_;  // of one head
  Buffer arena_, tables_, groups_, heads_, window_start_;
  Buffer step_;  // what one brings
  StepView view_;
  int64_t entries_ = 0;  // of the table of one sequence
};

}  // namespace headwater
