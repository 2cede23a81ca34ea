#include "engine/engine_core.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "engine/log.h"
#include "kernels/base/check.h"

namespace headwater {
namespace {

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

const char* reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

Scheduler::Limits limits_for(const ModelSpec& model, Scheduler::Limits limits) {
  if (!model.long_ropes.empty()) limits.long_after = model.long_after;
  return limits;
}

}  // namespace

EngineCore::EngineCore(
    Model& model, Ops& ops, ThreadPool& pool, kv::KvGeometry geometry, const Options& options)
    : options_(options),
      model_(model),
      pool_(pool),
      kv_(std::move(geometry), options.kv),
      executor_(
          model, ops, kv_, options.kv.arena_bytes, options.limits.max_num_seqs, options.overlap),
      scheduler_(kv_, limits_for(model.spec(), options.limits)),
      scratch_(static_cast<size_t>(pool.num_threads())),
      random_(options.seed != 0 ? options.seed : std::random_device{}()),
      stats_(initial_stats(options.max_model_len)) {}

EngineCore::~EngineCore() {
  end_all({StatusCode::kUnavailable, "the server is shutting down", ""});
}

template <typename Visit>
void EngineCore::for_each_sequence(Visit&& visit) const {
  for (const auto& seq : scheduler_.running()) visit(*seq);
  for (const auto& seq : scheduler_.waiting()) visit(*seq);
}

// A budget that no rule reaches is none, so that it shares prefixes with those that ask for none.
int32_t EngineCore::kept_tokens(const AttentionRequest& asked) const {
  if (!asked.kv_budget || *asked.kv_budget >= options_.max_model_len) return 0;
  const auto budget = static_cast<int32_t>(*asked.kv_budget);
  for (const kv::KvGroup& group : kv_.geometry().groups()) {
    const kv::RetentionRule& rule = group.rule;
    if (!rule.keeps_all_seen() &&
        rule.recent(options_.max_model_len, budget) < rule.recent(options_.max_model_len))
      return budget;
  }
  return 0;
}

std::unique_ptr<Sequence> EngineCore::make_sequence(const std::shared_ptr<const Request>& request,
                                                    int32_t choice,
                                                    uint64_t seed) {
  auto seq = std::make_unique<Sequence>();
  seq->request = request;
  seq->choice = choice;
  seq->seed = seed;
  seq->tokens = request->prompt;
  seq->num_prompt = static_cast<int32_t>(request->prompt.size());
  seq->max_tokens = static_cast<int32_t>(std::min<int64_t>(
      options_.max_model_len, int64_t{seq->num_prompt} + request->sampling.max_tokens));
  seq->rules.dense = options_.dense || request->attention.policy == "dense";
  if (!seq->rules.dense)
    seq->rules.faithful_tokens = std::min(
        seq->num_prompt,
        request->attention.faithful_tokens.value_or(options_.faithful ? seq->num_prompt : 0));
  seq->rules.kept_tokens = kept_tokens(request->attention);
  seq->sampler = std::make_unique<Sampler>(request->sampling,
                                           model_.spec().vocab_size,
                                           options_.eos_token_ids,
                                           seed,
                                           choice,
                                           request->prompt);
  return seq;
}

void EngineCore::add(Request request) {
  const uint64_t seed = request.sampling.seed.value_or(random_());
  stats_.prompt_tokens += request.prompt.size();
  stats_.prompt_tokens_per_request.observe(static_cast<double>(request.prompt.size()));
  stats_.max_tokens_per_request.observe(request.sampling.max_tokens);
  stats_.choices_per_request.observe(request.n);
  auto seq = make_sequence(std::make_shared<const Request>(std::move(request)), 0, seed);
  seq->order = next_order_++;
  scheduler_.add(std::move(seq));
}

void EngineCore::end(RequestId id, const Status& why) {
  std::vector<Sequence*> ended;
  for_each_sequence([&](Sequence& seq) {
    if (seq.request->id == id) ended.push_back(&seq);
  });
  for (Sequence* seq : ended) end_sequence(*seq, why);
}

void EngineCore::end_all(const Status& why) {
  std::vector<Sequence*> all;
  for_each_sequence([&](Sequence& seq) { all.push_back(&seq); });
  for (Sequence* seq : all) end_sequence(*seq, why);
}

void EngineCore::stop_choice(RequestId id, int32_t choice) {
  Sequence* found = nullptr;
  for_each_sequence([&](Sequence& seq) {
    if (seq.request->id == id && seq.choice == choice && seq.num_output() > 0) found = &seq;
  });
  if (found == nullptr) return;
  TokenEvent event;
  event.finish = FinishReason::kStop;
  finish(*found, std::move(event));
}

// Choices that were never forked off get their terminal event too.
void EngineCore::end_sequence(Sequence& seq, const Status& why) {
  const bool abort = why.ok() || why.code == StatusCode::kCancelled ||
                     why.code == StatusCode::kDeadlineExceeded ||
                     why.code == StatusCode::kUnavailable;
  TokenEvent event;
  event.finish = abort ? FinishReason::kAbort : FinishReason::kError;
  event.error = why;
  const bool unforked = seq.choice == 0 && seq.num_output() == 0;
  const std::shared_ptr<const Request> request = seq.request;
  finish(seq, event);
  for (int32_t choice = 1; unforked && choice < request->n; ++choice) {
    TokenEvent sibling;
    sibling.choice = choice;
    sibling.finish = event.finish;
    sibling.error = why;
    sibling.usage.prompt_tokens = static_cast<int32_t>(request->prompt.size());
    request->sink->on_event(std::move(sibling));
  }
}

std::optional<Clock::time_point> EngineCore::next_deadline() const {
  std::optional<Clock::time_point> earliest;
  for_each_sequence([&](const Sequence& seq) {
    const auto& deadline = seq.request->deadline;
    if (deadline && (!earliest || *deadline < *earliest)) earliest = deadline;
  });
  return earliest;
}

void EngineCore::expire(Clock::time_point now) {
  std::vector<RequestId> late;
  for_each_sequence([&](const Sequence& seq) {
    if (seq.request->deadline && *seq.request->deadline <= now) late.push_back(seq.request->id);
  });
  for (RequestId id : late)
    end(id, {StatusCode::kDeadlineExceeded, "the request's deadline passed", ""});
}

bool EngineCore::step() {
  Step& next = under_way_ == &steps_[0] ? steps_[1] : steps_[0];
  next.start = Clock::now();
  next.draws.clear();
  expire(next.start);
  scheduler_.next_step(next.plan);
  Step* const ending = std::exchange(under_way_, nullptr);
  if (next.plan.empty()) {
    Sequence* const stuck = ending == nullptr ? scheduler_.stuck() : nullptr;
    if (ending != nullptr) complete(*ending, nullptr);
    if (stuck != nullptr)
      end_sequence(*stuck,
                   {StatusCode::kResourceExhausted,
                    "the KV pool cannot hold a sequence of " + std::to_string(stuck->num_tokens()) +
                        " tokens; raise --kv-cache-bytes",
                    ""});
    return ending != nullptr || stuck != nullptr;
  }
  const bool overlaps = options_.overlap && next.plan.drawn_on_device();
  executor_.enqueue(next.plan);
  if (ending != nullptr) complete(*ending, &next);
  commit(next);
  if (overlaps) {
    for (const Draw& draw : next.draws) draw.seq->tokens.push_back(-1 - draw.logit_row);
    under_way_ = &next;
  } else {
    complete(next, nullptr);
  }
  if (options_.check_invariants) check();
  return true;
}

void EngineCore::commit(Step& step) {
  scheduler_.commit_rows(step.plan);
  for (const PlannedRows& rows : step.plan.sequences)
    if (rows.seq != nullptr && rows.end() == rows.seq->num_tokens()) plan_draws(rows, step.draws);
}

void EngineCore::complete(Step& step, Step* next) {
  const std::span<const int32_t> drawn = executor_.wait();
  for (const PlannedRows& rows : step.plan.sequences)
    if (rows.seq != nullptr && rows.seq->wants_prompt_logprobs()) collect_prompt_logprobs(rows);
  for (const Draw& draw : step.draws)
    if (draw.seq != nullptr && draw.seq->awaits_token()) draw.seq->tokens.pop_back();
  sample(step, drawn, next);
  const Clock::time_point now = Clock::now();
  for (Draw& draw : step.draws)
    if (draw.seq != nullptr) publish(draw, now);
  for (RequestId id : deserted_) end(id, Status::Ok());
  deserted_.clear();
  const Clock::time_point end = Clock::now();
  scheduler_.observe(step.plan, seconds_between(std::max(step.start, last_completed_), end));
  last_completed_ = end;
  stats_.tokens_per_step.observe(step.plan.num_rows);
  ++stats_.num_steps;
}

void EngineCore::leave(Step& step, const Sequence& seq) {
  for (PlannedRows& rows : step.plan.sequences)
    if (rows.seq == &seq) rows.seq = nullptr;
  for (Draw& draw : step.draws)
    if (draw.seq == &seq) draw.seq = nullptr;
}

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
  switch (reason) {
    case FinishReason::kNone:
      HW_CHECK(false, "a finish needs a reason");
    case FinishReason::kStop:
      ++stats_.finished_stop;
      break;
    case FinishReason::kLength:
      ++stats_.finished_length;
      break;
    case FinishReason::kAbort:
      ++stats_.finished_abort;
      break;
    case FinishReason::kError:
      ++stats_.finished_error;
      break;
  }
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
             {"finish", reason_name(reason)},
             {"prompt_tokens", seq.num_prompt},
             {"cached_tokens", seq.cached_tokens},
             {"output_tokens", seq.num_output()},
             {"kv_bytes", seq.final_kv_bytes},
             {"seconds", total}});
}

int64_t EngineCore::num_waiting_requests() const {
  return static_cast<int64_t>(scheduler_.waiting().size());
}

EngineStats EngineCore::stats() const {
  EngineStats stats = stats_;
  stats.num_running = static_cast<int64_t>(scheduler_.running().size());
  stats.num_waiting = num_waiting_requests();
  const kv::PoolCounts pages = kv_.page_counts();
  const kv::PoolCounts bytes = kv_.byte_counts();
  stats.kv_pages_total = pages.total;
  stats.kv_pages_free = pages.free;
  stats.kv_pages_held = pages.held;
  stats.kv_pages_cached = pages.cached;
  stats.kv_bytes_total = bytes.total;
  stats.kv_bytes_free = bytes.free;
  stats.kv_bytes_held = bytes.held;
  stats.kv_bytes_cached = bytes.cached;
  for (const auto& seq : scheduler_.running()) {
    stats.kv_bytes_dense_equivalent += kv_.geometry().dense_cache_bytes(seq->kv.num_tokens());
    for (int32_t g = 0; g < kv_.geometry().num_groups(); ++g) {
      const kv::KvGroup& group = kv_.geometry().groups()[static_cast<size_t>(g)];
      int64_t& tokens =
          group.rule.keeps_all_seen() ? stats.kv_tokens_full : stats.kv_tokens_compressed;
      tokens += group.num_heads * kv_.held_tokens(seq->kv, g);
    }
  }
  stats.kv_blocks_folded = kv_.num_folded_blocks();
  stats.page_tokens = kv_.geometry().page_tokens();
  stats.kv_format = dtype_name(kv_.geometry().groups()[0].page.format);
  stats.prefix_caching = options_.kv.prefix_caching;
  stats.prefix_query_tokens = scheduler_.prefix_query_tokens();
  stats.prefix_hit_tokens = scheduler_.prefix_hit_tokens();
  stats.num_preemptions = scheduler_.num_preemptions();
  return stats;
}

void EngineCore::check() const {
  std::vector<const kv::SequenceKv*> sequences;
  for_each_sequence([&](const Sequence& seq) { sequences.push_back(&seq.kv); });
  kv_.check(sequences);
}

}  // namespace headwater
