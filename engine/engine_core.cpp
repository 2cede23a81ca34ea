#include "engine/engine_core.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"

namespace headwater {
namespace {

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
