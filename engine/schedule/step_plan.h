// StepPlan: one step as flat arrays, complete: the executor consults nothing else. Reused from step
// to step; never owns sequences.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/sequence.h"

namespace headwater {

// The rows of one sequence in this step.
struct PlannedRows {
  Sequence* seq = nullptr;  // null: it left while the step was under way
  int32_t first_position = 0;
  int32_t num_rows = 0;
  int32_t first_logit_row = 0;  // into the step's logits
  int32_t num_logit_rows = 0;   // the last rows of the sequence's; 0 = none wanted

  int32_t end() const { return first_position + num_rows; }
};

struct StepPlan {
  std::vector<PlannedRows> sequences;
  int32_t num_rows = 0;
  int32_t num_logit_rows = 0;
  int32_t num_decodes = 0;      // rows that continue an output
  int32_t num_long_rows = 0;    // of sequences with long_context; they come last
  int32_t num_single_rows = 0;  // of the first sequences, which have one row each
  int32_t position_bound = 0;   // no position reaches it: as the function below has it

  // Of a token that is still on the device: -1 - its row of the logits of the step before.
  std::vector<int32_t> token_ids, positions, row_seq;  // [num_rows]
  std::vector<int32_t> row_begin;                      // [num_seqs + 1]
  std::vector<int32_t> logit_rows;                     // [num_logit_rows]
  std::vector<TokenDraw> draws;                        // [num_logit_rows]
  std::vector<int64_t> table_begin;                    // [num_seqs, num_groups]
  std::vector<int32_t> window_start;                   // [num_groups, num_rows]
  std::vector<kv::PageCopy> copies;                    // before the rows

  bool empty() const { return sequences.empty(); }
  // Whether the device draws, as far as can be told, every token that the step ends in.
  bool drawn_on_device() const;
};

// At least num_positions, and at most half more or up to the next step, but for max_tokens: of few
// values, since what devices record of a step may depend on it.
constexpr int32_t kPositionBoundStep = 2048;
int32_t position_bound(int32_t num_positions, int32_t max_tokens);

// Fills the flat arrays from `sequences`, which it puts in order.
void flatten(StepPlan& plan, const kv::KvManager& kv);

}  // namespace headwater
