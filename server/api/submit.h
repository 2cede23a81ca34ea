// submit: the road from a transport's native parameters to the engine and back, shared by HTTP and
// gRPC: a GenerationRequest goes in, Deltas of finished text come out on the caller's executor.
// Detokenizing and stop strings happen here.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"
#include "engine/text/detokenizer.h"
#include "kernels/base/status.h"

namespace headwater::api {

struct GenerationOptions {
  SamplingParams sampling;            // its max_tokens is not read: the one below is
  std::optional<int32_t> max_tokens;  // 0: the prompt only; unset: what the context leaves,
  int32_t default_max_tokens = 0;     // but at most this (0: no such bound)
  int32_t n = 1;                      // choices per prompt
  std::vector<std::string> stop;
  bool include_stop = false;  // the stop string or token stays in the text
  bool skip_special_tokens = true;
  AttentionRequest attention;
};

struct GenerationRequest {
  std::vector<std::vector<int32_t>> prompts;  // token ids; see PromptBuilder
  GenerationOptions options;
  std::string label;  // for logs: the client's request id
  Clock::time_point arrival = Clock::now();
  std::optional<Clock::time_point> deadline;
};

// Sums over all prompts and choices (a prompt counts once, however many choices it has).
struct GenerationUsage {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t cached_tokens = 0;
  int64_t kv_bytes = 0;
  int64_t kv_bytes_dense = 0;
};

// monostate: ended by end-of-sequence or length.
using StopReason = std::variant<std::monostate, int32_t, std::string>;

// What one engine event adds to one choice.
struct Delta {
  int32_t choice = 0;                          // prompt-major: prompt * n + k
  std::string text;                            // whole UTF-8 characters; may be empty
  std::vector<int32_t> tokens;                 // tokens counted; their text may come later
  std::vector<TokenLogprobs> logprobs;         // per token, if asked for
  std::vector<TokenLogprobs> prompt_logprobs;  // first delta of a prompt's first choice
  FinishReason finish = FinishReason::kNone;   // kStop or kLength on a choice's last delta
  StopReason stop_reason;
  GenerationUsage so_far;  // kv figures only of ended choices
};

// Runs tasks one at a time, in order, on another thread than the caller's (a strand's post).
using Executor = std::function<void(std::function<void()>)>;

// Called on the executor. on_done comes exactly once and last, unless cancel() was called on the
// executor before; a status that is not ok replaces the rest of the output. Must not throw.
struct GenerationCallbacks {
  std::function<void(Delta)> on_delta;
  std::function<void(const Status&, const GenerationUsage&)> on_done;
};

// A generation under way. Kept alive by the engine until its last event.
class Generation final : public std::enable_shared_from_this<Generation> {
 public:
  // Queues one engine request per prompt. On an error nothing was queued for good and no callback
  // comes. Errors: the engine's, kContextLength (message with the numbers), kInvalidArgument.
  static Result<std::shared_ptr<Generation>> start(Engine& engine,
                                                   GenerationRequest request,
                                                   Executor executor,
                                                   GenerationCallbacks callbacks);

  // Any thread, any number of times: the engine drops the work within a step. Called on the
  // executor, no callback follows.
  void cancel();

  Generation(const Generation&) = delete;

 private:
  class Sink;
  struct Choice {
    Detokenizer detokenizer;
    StopMatcher matcher;
    int32_t num_tokens = 0;
    bool closed = false;  // its finish reason was published
    bool ended = false;   // the engine sent its last event
  };

  Generation(Engine& engine,
             const GenerationRequest& request,
             Executor executor,
             GenerationCallbacks callbacks);
  Status submit_prompt(size_t prompt_idx, GenerationRequest& request);
  void on_event(size_t prompt_idx, TokenEvent event);  // on the executor
  void append_tokens(Choice& choice, TokenEvent& event, Delta& delta) const;
  void close_choice(Choice& choice, const TokenEvent& event, Delta& delta) const;
  void end_choice(Choice& choice, const Usage& usage);
  void finish(const Status& status);

  Engine& engine_;  // not owned; outlives every generation
  const GenerationOptions options_;
  Executor executor_;
  GenerationCallbacks callbacks_;
  std::vector<RequestId> ids_;   // per prompt
  std::vector<int32_t> cached_;  // per prompt: its tokens found in the prefix index
  std::vector<Choice> choices_;  // prompt-major
  size_t num_running_;           // choices without their last event
  GenerationUsage usage_;
  std::atomic<bool> abandoned_{false};
};

}  // namespace headwater::api
