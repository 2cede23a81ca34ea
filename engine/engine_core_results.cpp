// From a step's logits to tokens, events and counts.
#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/engine_core.h"
#include "engine/log.h"
#include "kernels/base/check.h"

namespace headwater {
namespace {

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

void EngineCore::collect_prompt_logprobs(const PlannedRows& rows) {
  Sequence& seq = *rows.seq;
  std::vector<int32_t> logit_rows(static_cast<size_t>(rows.num_logit_rows));
  std::iota(logit_rows.begin(), logit_rows.end(), rows.first_logit_row);
  const Matrix logits = executor_.fetch_logits(logit_rows);
  for (int32_t i = 0; i < rows.num_logit_rows && seq.wants_prompt_logprobs(); ++i) {
    const int32_t position = rows.end() - rows.num_logit_rows + i;
    if (position != static_cast<int32_t>(seq.prompt_logprobs.size())) continue;
    const std::span<const float> row(logits.f32_row(rows.first_logit_row + i),
                                     static_cast<size_t>(logits.cols));
    seq.prompt_logprobs.push_back(logprobs_of(
        row, seq.tokens[static_cast<size_t>(position) + 1], seq.request->sampling.prompt_logprobs));
  }
}

void EngineCore::plan_draws(const PlannedRows& rows, std::vector<Draw>& draws) {
  Sequence& seq = *rows.seq;
  const int32_t logit_row = rows.first_logit_row + rows.num_logit_rows - 1;
  if (seq.num_output() == 0 && seq.choice == 0) {
    for (int32_t choice = 1; choice < seq.request->n; ++choice) {
      auto fork = make_sequence(seq.request, choice, seq.seed);
      fork->order = seq.order;
      fork->first_scheduled = seq.first_scheduled;
      fork->cached_tokens = seq.cached_tokens;
      draws.push_back({fork.get(), logit_row, true, {}, {}});
      scheduler_.add_fork(std::move(fork), seq);
    }
  }
  draws.push_back({&seq, logit_row, false, {}, {}});
}

// Rows cross the bus only where the device could not draw.
void EngineCore::sample(Step& step, std::span<const int32_t> drawn, Step* next) {
  std::vector<Draw*> undecided;
  std::vector<int32_t> rows;
  for (Draw& draw : step.draws) {
    if (draw.seq == nullptr) continue;
    const int32_t token = drawn.empty() ? kUndecided : drawn[static_cast<size_t>(draw.logit_row)];
    draw.seq->device_was_undecided = token == kUndecided;
    if (token != kUndecided || draw.seq->request->sampling.max_tokens == 0) {
      draw.sampled = SampledToken{token, {}};
      continue;
    }
    if (next != nullptr) leave(*next, *draw.seq);  // there it went on from no token
    undecided.push_back(&draw);
    if (rows.empty() || rows.back() != draw.logit_row) rows.push_back(draw.logit_row);
  }
  if (rows.empty()) return;
  if (!drawn.empty()) stats_.host_draws += undecided.size();
  const Matrix logits = executor_.fetch_logits(rows);
  for (Draw* draw : undecided) {
    const float* row = logits.f32_row(draw->logit_row);
    if (draw->shares_row) draw->own_row.assign(row, row + logits.cols);
  }
  pool_.parallel_for(std::ssize(undecided), [&](int64_t i, int thread) {
    Draw& draw = *undecided[static_cast<size_t>(i)];
    float* row = draw.shares_row ? draw.own_row.data() : logits.f32_row(draw.logit_row);
    draw.sampled = draw.seq->sampler->sample(std::span(row, static_cast<size_t>(logits.cols)),
                                             draw.seq->num_output(),
                                             scratch_[static_cast<size_t>(thread)]);
  });
}

void EngineCore::publish(Draw& draw, Clock::time_point now) {
  Sequence& seq = *draw.seq;
  const SamplingParams& sampling = seq.request->sampling;
  TokenEvent event;
  if (seq.num_output() == 0) {
    seq.first_token = now;
    stats_.time_to_first_token_s.observe(seconds_between(seq.request->arrival, now));
    if (seq.choice == 0) event.prompt_logprobs = std::move(seq.prompt_logprobs);
  } else {
    stats_.inter_token_latency_s.observe(seconds_between(seq.last_token, now));
  }
  seq.last_token = now;
  if (sampling.max_tokens == 0) {
    event.finish = FinishReason::kLength;
    finish(seq, std::move(event));
    return;
  }
  const int32_t token = draw.sampled->token;
  seq.sampler->accept(token);
  seq.tokens.push_back(token);
  ++stats_.generation_tokens;
  event.tokens.push_back(token);
  if (sampling.logprobs >= 0) event.logprobs.push_back(std::move(draw.sampled->logprobs));

  if (contains(sampling.stop_token_ids, token)) {
    event.finish = FinishReason::kStop;
    event.stop_token = token;
  } else if (!sampling.ignore_eos && contains(options_.eos_token_ids, token)) {
    event.finish = FinishReason::kStop;
  } else if (seq.num_tokens() >= seq.max_tokens) {
    event.finish = FinishReason::kLength;
  }
  if (event.finish != FinishReason::kNone) {
    finish(seq, std::move(event));
  } else if (!deliver(seq, std::move(event))) {
    deserted_.push_back(seq.request->id);
  }
}

bool EngineCore::deliver(Sequence& seq, TokenEvent event) {
  event.choice = seq.choice;
  event.usage.prompt_tokens = seq.num_prompt;
  event.usage.cached_tokens = seq.cached_tokens;
  return seq.request->sink->on_event(std::move(event));
}

void EngineCore::finish(Sequence& seq, TokenEvent event) {
  for (Step& step : steps_) leave(step, seq);
  if (seq.awaits_token()) seq.tokens.pop_back();
  const int32_t held_tokens = seq.kv.num_tokens();
  const std::unique_ptr<Sequence> owner = scheduler_.remove(seq);
  seq.state = SequenceState::kFinished;
  event.usage.kv_bytes = seq.final_kv_bytes;
  event.usage.kv_bytes_dense = kv_.geometry().dense_cache_bytes(held_tokens);
  record_finish(seq, event.finish, Clock::now());
  deliver(seq, std::move(event));
}

void EngineCore::record_finish(const Sequence& seq, FinishReason reason, Clock::time_point now) {
  HW_CHECK(reason != FinishReason::kNone, "a finish needs a reason", seq.choice);
  const auto index = static_cast<size_t>(reason);
  ++stats_.finished[index];
  const double total = seconds_between(seq.request->arrival, now);
  stats_.e2e_latency_s.observe(total);
  stats_.generation_tokens_per_request.observe(seq.num_output());
  if (seq.num_output() > 0) {
    stats_.queue_time_s.observe(seconds_between(seq.request->arrival, seq.first_scheduled));
    stats_.prefill_time_s.observe(seconds_between(seq.first_scheduled, seq.first_token));
    stats_.decode_time_s.observe(seconds_between(seq.first_token, seq.last_token));
    stats_.inference_time_s.observe(seconds_between(seq.first_scheduled, seq.last_token));
    if (seq.num_output() > 1)
      stats_.time_per_output_token_s.observe(seconds_between(seq.first_token, seq.last_token) /
                                             (seq.num_output() - 1));
  }
  log::info("engine",
            "request finished",
            {{"request", seq.request->label},
             {"choice", seq.choice},
             {"finish", kFinishReasonNames[index]},
             {"prompt_tokens", seq.num_prompt},
             {"cached_tokens", seq.cached_tokens},
             {"output_tokens", seq.num_output()},
             {"kv_bytes", seq.final_kv_bytes},
             {"seconds", total}});
}

}  // namespace headwater
