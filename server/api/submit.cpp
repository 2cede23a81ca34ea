#include "server/api/submit.h"

#include <algorithm>
#include <utility>

namespace headwater::api {
namespace {

// The engine's budget for one prompt: what was asked for, or what the context leaves.
Result<int32_t> resolve_max_tokens(int64_t prompt_tokens,
                                   const GenerationOptions& options,
                                   int64_t context) {
  const int64_t left = context - prompt_tokens;
  const int64_t needed = std::max(1, options.max_tokens.value_or(1));
  if (needed <= left) {
    if (options.max_tokens) return static_cast<int32_t>(needed);
    const int64_t bound = options.default_max_tokens > 0 ? options.default_max_tokens : left;
    return static_cast<int32_t>(std::min(left, bound));
  }
  std::string message = "the prompt has " + std::to_string(prompt_tokens) + " tokens";
  if (options.max_tokens) message += " and max_tokens is " + std::to_string(*options.max_tokens);
  message += "; the context holds " + std::to_string(context) +
             " tokens of prompt and output: shorten the prompt or ask for fewer tokens";
  return Status{StatusCode::kContextLength,
                std::move(message),
                prompt_tokens < context ? "max_tokens" : "prompt"};
}

bool contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

// Carries events from the engine thread to the executor. shared_ptr: Request holds it across the
// thread edge; it keeps the generation alive until the engine lets go.
class Generation::Sink final : public TokenSink {
 public:
  Sink(std::shared_ptr<Generation> generation, size_t prompt_idx)
      : generation_(std::move(generation)), prompt_idx_(prompt_idx) {}

  bool on_event(TokenEvent event) override {
    if (generation_->abandoned_) return false;
    generation_->executor_(
        [generation = generation_, idx = prompt_idx_, event = std::move(event)]() mutable {
          generation->on_event(idx, std::move(event));
        });
    return true;
  }

 private:
  std::shared_ptr<Generation> generation_;
  size_t prompt_idx_;
};

Generation::Generation(Engine& engine,
                       const GenerationRequest& request,
                       Executor executor,
                       GenerationCallbacks callbacks)
    : engine_(engine),
      options_(request.options),
      executor_(std::move(executor)),
      callbacks_(std::move(callbacks)),
      cached_(request.prompts.size(), 0),
      num_running_(request.prompts.size() * static_cast<size_t>(options_.n)) {
  choices_.reserve(num_running_);
  for (size_t i = 0; i < num_running_; ++i) {
    choices_.push_back({Detokenizer(engine.tokenizer(), options_.skip_special_tokens),
                        StopMatcher(options_.stop, options_.include_stop)});
  }
  for (const auto& prompt : request.prompts) {
    ids_.push_back(engine.next_request_id());
    usage_.prompt_tokens += static_cast<int32_t>(prompt.size());
  }
}

Result<std::shared_ptr<Generation>> Generation::start(Engine& engine,
                                                      GenerationRequest request,
                                                      Executor executor,
                                                      GenerationCallbacks callbacks) {
  if (request.prompts.empty()) return invalid_argument("at least one prompt is needed", "prompt");
  if (request.options.n < 1) return invalid_argument("n must be at least 1", "n");
  for (const auto& prompt : request.prompts) {
    if (prompt.empty()) {
      return invalid_argument("the prompt has no tokens; at least one is needed", "prompt");
    }
  }
  std::shared_ptr<Generation> generation(
      new Generation(engine, request, std::move(executor), std::move(callbacks)));
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    if (Status status = generation->submit_prompt(i, request); !status.ok()) {
      generation->cancel();
      return status;
    }
  }
  return generation;
}

Status Generation::submit_prompt(size_t prompt_idx, GenerationRequest& request) {
  const Result<int32_t> max_tokens =
      resolve_max_tokens(static_cast<int64_t>(request.prompts[prompt_idx].size()),
                         options_,
                         engine_.model_info().max_model_len);
  if (!max_tokens.ok()) return max_tokens.status();
  Request native;
  native.id = ids_[prompt_idx];
  native.label = request.label;
  native.prompt = std::move(request.prompts[prompt_idx]);
  native.sampling = options_.sampling;
  native.sampling.max_tokens = max_tokens.value();
  native.n = options_.n;
  native.arrival = request.arrival;
  native.deadline = request.deadline;
  native.attention = options_.attention;
  native.sink = std::make_shared<Sink>(shared_from_this(), prompt_idx);
  return engine_.submit(std::move(native));
}

void Generation::cancel() {
  if (abandoned_.exchange(true)) return;
  for (const RequestId id : ids_) engine_.cancel(id);
}

void Generation::on_event(size_t prompt_idx, TokenEvent event) {
  if (abandoned_ || num_running_ == 0) return;
  if (event.finish == FinishReason::kError) return finish(event.error);
  const size_t choice_idx =
      prompt_idx * static_cast<size_t>(options_.n) + static_cast<size_t>(event.choice);
  Choice& choice = choices_[choice_idx];
  // After a stop string the engine is told to end; what it still sends is not for the client.
  if (event.finish == FinishReason::kAbort && !choice.closed) {
    if (!event.error.ok()) return finish(event.error);
    return finish({StatusCode::kCancelled, "the request was aborted", ""});
  }
  if (event.choice == 0) {
    usage_.cached_tokens += event.usage.cached_tokens - cached_[prompt_idx];
    cached_[prompt_idx] = event.usage.cached_tokens;
  }
  const bool was_closed = choice.closed;
  Delta delta;
  delta.choice = static_cast<int32_t>(choice_idx);
  if (!was_closed) {
    delta.prompt_logprobs = std::move(event.prompt_logprobs);
    append_tokens(choice, event, delta);
    usage_.completion_tokens += static_cast<int32_t>(delta.tokens.size());
    close_choice(choice, event, delta);
  }
  if (event.finish != FinishReason::kNone) end_choice(choice, event.usage);
  if (!was_closed) {
    if (choice.closed && !choice.ended) engine_.stop_choice(ids_[prompt_idx], event.choice);
    delta.so_far = usage_;
    callbacks_.on_delta(std::move(delta));
  }
  if (num_running_ == 0 && !abandoned_) finish(Status::Ok());
}

void Generation::append_tokens(Choice& choice, TokenEvent& event, Delta& delta) const {
  if (options_.max_tokens == 0) return;
  for (size_t i = 0; i < event.tokens.size() && !choice.matcher.matched(); ++i) {
    const int32_t token = event.tokens[i];
    delta.tokens.push_back(token);
    if (i < event.logprobs.size()) delta.logprobs.push_back(std::move(event.logprobs[i]));
    ++choice.num_tokens;
    const bool is_stop = event.stop_token == token && i + 1 == event.tokens.size();
    if (is_stop && !options_.include_stop) continue;
    const std::string text = choice.detokenizer.push(token);
    // Stop strings count only beyond min_tokens, as stop ids do.
    delta.text +=
        choice.num_tokens > options_.sampling.min_tokens ? choice.matcher.push(text) : text;
  }
}

void Generation::close_choice(Choice& choice, const TokenEvent& event, Delta& delta) const {
  if (!choice.matcher.matched() && event.finish != FinishReason::kNone) {
    delta.text += choice.matcher.push(choice.detokenizer.flush());
    delta.text += choice.matcher.flush();
  }
  if (choice.matcher.matched()) {
    choice.closed = true;
    delta.finish = FinishReason::kStop;
    delta.stop_reason = *choice.matcher.matched();
  } else if (event.finish != FinishReason::kNone) {
    choice.closed = true;
    delta.finish = options_.max_tokens == 0 ? FinishReason::kLength : event.finish;
    if (options_.max_tokens != 0 && event.stop_token &&
        !contains(engine_.eos_token_ids(), *event.stop_token)) {
      delta.stop_reason = *event.stop_token;
    }
  }
}

void Generation::end_choice(Choice& choice, const Usage& usage) {
  if (choice.ended) return;
  choice.ended = true;
  --num_running_;
  usage_.kv_bytes += usage.kv_bytes;
  usage_.kv_bytes_dense += usage.kv_bytes_dense;
}

void Generation::finish(const Status& status) {
  if (!status.ok()) cancel();
  num_running_ = 0;
  callbacks_.on_done(status, usage_);
}

}  // namespace headwater::api
