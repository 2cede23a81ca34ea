// Request: one generation request as the engine takes it. Immutable after submit; knows no JSON.
// TokenSink: how the engine answers. Both cross the edge between server threads and the engine
// thread, which is why the sink is the one shared_ptr of the design.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/status.h"

namespace headwater {

using RequestId = uint64_t;
using Clock = std::chrono::steady_clock;

inline double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Names and meanings are vLLM's (typical_p: llama.cpp's). Bounds are checked by validate().
struct SamplingParams {
  float temperature = 1.0f;  // 0 = greedy
  int32_t top_k = 0;         // 0 or -1 = off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float typical_p = 1.0f;
  float repetition_penalty = 1.0f;  // over prompt and output
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<uint64_t> seed;  // unset: the engine draws one
  int32_t max_tokens = 16;
  int32_t min_tokens = 0;  // no eos or stop id before
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;
  int32_t logprobs = -1;         // -1 = none; k = the token's logprob and the k likeliest
  int32_t prompt_logprobs = -1;  // likewise for every prompt token but the first
};

// Checks bounds; the message names field, bound and value. vocab_size bounds ids.
Status validate(const SamplingParams& params, int32_t vocab_size);

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
};

struct TokenLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // most likely first
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kAbort, kError };
inline constexpr std::array kFinishReasonNames = {"none", "stop", "length", "abort", "error"};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;   // of the prompt, from the prefix index
  int64_t kv_bytes = 0;        // held by this choice when it ended
  int64_t kv_bytes_dense = 0;  // what a cache that keeps every token would hold
};

// One event of one choice. The last one of a choice carries finish != kNone, and every choice of
// every submitted request gets exactly one such event (also on shutdown and failure).
struct TokenEvent {
  int32_t choice = 0;                          // 0 .. n-1
  std::vector<int32_t> tokens;                 // new tokens; may be empty on the last event
  std::vector<TokenLogprobs> logprobs;         // per token, if asked for
  std::vector<TokenLogprobs> prompt_logprobs;  // first event of choice 0: per prompt token after
                                               // the first, if asked for
  FinishReason finish = FinishReason::kNone;
  std::optional<int32_t> stop_token;  // the stop id that ended it; it is in tokens
  Status error;                       // kError, and kAbort by deadline or drain
  Usage usage;                        // complete on the last event
};

// Called on the engine thread; must return at once (post elsewhere), must not throw.
// False: nobody listens any more; the engine drops the request within the step.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual bool on_event(TokenEvent event) = 0;
};

// What a request asks of the attention policy (kv-design section 5). Empty = the server's.
struct AttentionRequest {
  std::string policy;
  std::optional<int64_t> kv_budget;  // tokens that a compressed head keeps at most
  std::optional<int64_t> selection_budget;
  // So many tokens of the prompt are prefilled faithfully, what follows them sees what output sees:
  // a question asked, or an answer scored, after compression. Unset: by the server's prefill mode.
  std::optional<int32_t> faithful_tokens = {};
};

struct Request {
  RequestId id = 0;             // unique; from Engine::next_request_id()
  std::string label;            // for logs: the client's request id
  std::vector<int32_t> prompt;  // token ids, at least one
  SamplingParams sampling;
  int32_t n = 1;  // choices
  Clock::time_point arrival = Clock::now();
  std::optional<Clock::time_point> deadline;
  AttentionRequest attention;
  std::shared_ptr<TokenSink> sink;
};

}  // namespace headwater
