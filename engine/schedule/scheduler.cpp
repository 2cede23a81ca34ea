#include "engine/schedule/scheduler.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace headwater {
namespace {

template <typename Sequences>
void insert_by_order(Sequences& sequences, std::unique_ptr<Sequence> seq) {
  const auto later = std::find_if(sequences.begin(), sequences.end(), [&](const auto& other) {
    return std::pair(other->order, other->choice) > std::pair(seq->order, seq->choice);
  });
  sequences.insert(later, std::move(seq));
}

}  // namespace

Scheduler::Scheduler(kv::KvManager& kv, const Limits& limits)
    : kv_(kv),
      limits_(limits),
      pacer_(limits.max_itl_stretch, limits.max_num_seqs, limits.max_num_batched_tokens) {}

void Scheduler::add(std::unique_ptr<Sequence> seq) { wait(std::move(seq)); }

void Scheduler::add_fork(std::unique_ptr<Sequence> seq, const Sequence& parent) {
  if (static_cast<int32_t>(running_.size()) >= limits_.max_num_seqs || kv_.num_free_slots() == 0) {
    wait(std::move(seq));
    return;
  }
  seq->rules.key_space = parent.rules.key_space;
  seq->kv = kv_.fork(parent.kv);
  seq->state = SequenceState::kRunning;
  seq->admitted_before = true;
  insert_by_order(running_, std::move(seq));
}

void Scheduler::wait(std::unique_ptr<Sequence> seq) {
  seq->state = SequenceState::kWaiting;
  insert_by_order(waiting_, std::move(seq));
}

void Scheduler::next_step(StepPlan& plan) {
  plan.sequences.clear();
  plan.num_rows = 0;
  plan.num_logit_rows = 0;
  for (size_t i = 0; i < running_.size();) {
    Sequence& seq = *running_[i];
    if (seq.only_awaits() || is_long(seq) == seq.long_context()) {
      ++i;
    } else {
      wait(remove(seq));  // became long: everything anew
    }
  }
  // place() may preempt, which shrinks running_ at its end: index, never iterate.
  int32_t num_decodes = 0;
  for (size_t i = 0; i < running_.size(); ++i)
    if (running_[i]->decoding()) num_decodes += place(*running_[i], 1, plan);
  int32_t budget =
      std::min(pacer_.rows(num_decodes), std::max(0, limits_.max_num_batched_tokens - num_decodes));
  for (size_t i = 0; i < running_.size() && budget > 0; ++i)
    if (!running_[i]->decoding()) budget -= place(*running_[i], budget, plan);
  while (budget > 0) {
    const int32_t rows = admit(plan, budget);
    if (rows == 0) break;
    budget -= rows;
  }
  plan.copies = kv_.take_copies();
  flatten(plan, kv_);
}

int32_t Scheduler::admit(StepPlan& plan, int32_t max_rows) {
  if (waiting_.empty() || kv_.num_free_slots() == 0) return 0;
  if (static_cast<int32_t>(running_.size()) >= limits_.max_num_seqs) return 0;
  Sequence& seq = *waiting_.front();
  seq.rules.key_space = is_long(seq) ? 1 : 0;
  kv::SequenceRules rules = seq.rules;
  rules.share_prefix = !seq.wants_prompt_logprobs();  // those need every prompt row computed
  seq.kv = kv_.create(rules);
  const int32_t cached = kv_.adopt(seq.kv, seq.tokens, seq.num_tokens() - 1);
  int64_t needed = kv_.peak_growth_bytes(seq.kv, seq.num_tokens(), max_step_rows());
  for (const auto& other : running_)
    if (!other->decoding())
      needed += kv_.peak_growth_bytes(other->kv, other->num_tokens(), max_step_rows());
  if (needed > kv_.reclaimable_bytes()) {
    kv_.release(seq.kv);
    return 0;
  }
  if (!seq.admitted_before) {
    seq.admitted_before = true;
    seq.first_scheduled = Clock::now();
    seq.cached_tokens = std::min(cached, seq.num_prompt);
    prefix_query_tokens_ += static_cast<uint64_t>(seq.num_prompt);
    prefix_hit_tokens_ += static_cast<uint64_t>(seq.cached_tokens);
  }
  seq.state = SequenceState::kRunning;
  std::unique_ptr<Sequence> owner = std::move(waiting_.front());
  waiting_.pop_front();
  insert_by_order(running_, std::move(owner));
  return place(seq, max_rows, plan);
}

int32_t Scheduler::place(Sequence& seq, int32_t max_rows, StepPlan& plan) {
  if (seq.only_awaits()) return 0;
  PlannedRows rows;
  rows.seq = &seq;
  rows.first_position = seq.kv.num_tokens();
  rows.num_rows = std::min(seq.num_remaining(), max_rows);
  const int32_t logit_room = limits_.max_logit_rows - plan.num_logit_rows;
  if (seq.wants_prompt_logprobs()) rows.num_rows = std::min(rows.num_rows, logit_room);
  if (rows.num_rows <= 0 || logit_room <= 0) return 0;
  while (!kv_.reserve(seq.kv, rows.end())) {
    Sequence& latest = *running_.back();
    preempt(latest, plan);
    if (&latest == &seq) return 0;
  }
  const bool last = rows.end() == seq.num_tokens();
  rows.num_logit_rows = seq.wants_prompt_logprobs() ? rows.num_rows : (last ? 1 : 0);
  plan.num_rows += rows.num_rows;
  plan.num_logit_rows += rows.num_logit_rows;
  plan.sequences.push_back(rows);
  return rows.num_rows;
}

void Scheduler::preempt(Sequence& seq, StepPlan& plan) {
  const auto planned = std::find_if(plan.sequences.begin(),
                                    plan.sequences.end(),
                                    [&](const PlannedRows& rows) { return rows.seq == &seq; });
  if (planned != plan.sequences.end()) {
    plan.num_rows -= planned->num_rows;
    plan.num_logit_rows -= planned->num_logit_rows;
    plan.sequences.erase(planned);
  }
  ++num_preemptions_;
  wait(remove(seq));
}

void Scheduler::commit_rows(const StepPlan& plan) {
  for (const PlannedRows& rows : plan.sequences) {
    if (rows.seq == nullptr) continue;
    kv_.commit(rows.seq->kv, std::span(rows.seq->tokens).first(static_cast<size_t>(rows.end())));
  }
}

void Scheduler::observe(const StepPlan& plan, double seconds) {
  pacer_.observe(plan.num_decodes, plan.num_rows - plan.num_decodes, seconds);
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence& seq) {
  const auto take = [&](auto& sequences) {
    const auto found = std::find_if(
        sequences.begin(), sequences.end(), [&](const auto& s) { return s.get() == &seq; });
    if (found == sequences.end()) return std::unique_ptr<Sequence>();
    std::unique_ptr<Sequence> owner = std::move(*found);
    sequences.erase(found);
    return owner;
  };
  std::unique_ptr<Sequence> owner = take(running_);
  if (!owner) owner = take(waiting_);
  HW_CHECK(owner, "the sequence is the scheduler's");
  owner->final_kv_bytes = kv_.held_bytes(owner->kv);
  kv_.release(owner->kv);
  return owner;
}

}  // namespace headwater
