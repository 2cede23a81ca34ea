#include "engine/schedule/step_plan.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace headwater {

int32_t position_bound(int32_t num_positions, int32_t max_tokens) {
  const int64_t half_power = std::bit_floor(static_cast<uint32_t>(num_positions)) / 2;
  const int64_t step = std::max<int64_t>(kPositionBoundStep, half_power);
  return static_cast<int32_t>(
      std::min<int64_t>((num_positions + step - 1) / step * step, max_tokens));
}

void flatten(StepPlan& plan, const kv::KvManager& kv) {
  plan.token_ids.clear();
  plan.positions.clear();
  plan.row_seq.clear();
  plan.row_begin.assign(1, 0);
  plan.logit_rows.clear();
  plan.draws.clear();
  plan.table_begin.clear();
  plan.num_decodes = 0;
  plan.num_long_rows = 0;
  int32_t num_positions = 0;
  std::ranges::stable_sort(plan.sequences, {}, [](const PlannedRows& rows) {
    return std::pair(rows.seq->long_context(), rows.num_rows > 1);
  });
  plan.num_single_rows = static_cast<int32_t>(
      std::ranges::find_if(plan.sequences,
                           [](const PlannedRows& rows) { return rows.num_rows > 1; }) -
      plan.sequences.begin());
  const int32_t num_groups = kv.geometry().num_groups();
  for (PlannedRows& rows : plan.sequences) {
    const Sequence& seq = *rows.seq;
    num_positions = std::max(num_positions, rows.end());
    plan.num_decodes += seq.decoding();
    plan.num_long_rows += seq.long_context() ? rows.num_rows : 0;
    for (int32_t position = rows.first_position; position < rows.end(); ++position) {
      plan.token_ids.push_back(seq.tokens[static_cast<size_t>(position)]);
      plan.positions.push_back(position);
      plan.row_seq.push_back(static_cast<int32_t>(plan.row_begin.size()) - 1);
    }
    plan.row_begin.push_back(static_cast<int32_t>(plan.token_ids.size()));
    rows.first_logit_row = static_cast<int32_t>(plan.logit_rows.size());
    for (int32_t i = plan.row_begin.back() - rows.num_logit_rows; i < plan.row_begin.back(); ++i)
      plan.logit_rows.push_back(i);
    plan.draws.resize(plan.logit_rows.size());  // none but a sequence's last row has one
    if (rows.end() == seq.num_tokens() && seq.draws_alone())
      plan.draws.back() = seq.sampler->token_draw(seq.num_output());
    for (int32_t g = 0; g < num_groups; ++g)
      plan.table_begin.push_back(kv.table_begin(seq.kv.table_slot(), g));
  }
  plan.num_rows = static_cast<int32_t>(plan.token_ids.size());
  plan.position_bound = position_bound(num_positions, kv.max_tokens());
  plan.num_logit_rows = static_cast<int32_t>(plan.logit_rows.size());
  plan.window_start.clear();
  for (int32_t g = 0; g < num_groups; ++g)
    for (const PlannedRows& rows : plan.sequences)
      for (int32_t position = rows.first_position; position < rows.end(); ++position)
        plan.window_start.push_back(kv.window_start(rows.seq->kv, g, position));
}

bool StepPlan::drawn_on_device() const {
  return std::ranges::none_of(draws, &TokenDraw::by_host) &&
         std::ranges::none_of(
             sequences, [](const PlannedRows& rows) { return rows.seq->device_was_undecided; });
}

}  // namespace headwater
