// Sequence: the mutable progress of one choice of one request. Engine thread only.
//
//   waiting --admit--> running --finish--> finished        tokens     prompt ++ output
//      ^                  |                                 computed   tokens whose K and V are in
//      +-----preempt------+  (pages given back)                        the pages: kv.num_tokens()
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/request.h"
#include "engine/sample/sampler.h"
#include "kvcache/kv_manager.h"

namespace headwater {

enum class SequenceState : uint8_t { kWaiting, kRunning, kFinished };

struct Sequence {
  std::shared_ptr<const Request> request;
  uint64_t order = 0;  // of arrival; later choices of a request follow the first
  int32_t choice = 0;
  uint64_t seed = 0;
  SequenceState state = SequenceState::kWaiting;
  std::vector<int32_t> tokens;  // the last one < 0: a step under way draws it (StepPlan::token_ids)
  int32_t num_prompt = 0;
  int32_t max_tokens = 0;  // of prompt and output
  kv::SequenceRules rules;
  kv::SequenceKv kv;
  std::unique_ptr<Sampler> sampler;
  bool device_was_undecided = false;  // about the last token

  std::vector<TokenLogprobs> prompt_logprobs;  // of prompt tokens 1, 2, ... as far as computed
  int32_t cached_tokens = 0;                   // of the prompt, when first admitted
  int64_t final_kv_bytes = 0;
  bool admitted_before = false;
  Clock::time_point first_scheduled, first_token, last_token;

  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  int32_t num_output() const { return num_tokens() - num_prompt; }
  int32_t num_remaining() const { return num_tokens() - kv.num_tokens(); }
  bool awaits_token() const { return tokens.back() < 0; }
  // The token under way is its last: there is nothing to compute any more.
  bool only_awaits() const { return awaits_token() && num_tokens() >= max_tokens; }
  // Whether the next draw is one token of its own.
  bool draws_alone() const {
    return request->sampling.max_tokens > 0 && (num_output() > 0 || request->n == 1);
  }
  bool decoding() const { return num_output() > 0 && num_remaining() == 1; }
  // Whether its rows are computed for a long sequence (Scheduler::Limits::long_after). K and V
  // differ then, so the one that becomes long starts over.
  bool long_context() const { return rules.key_space != 0; }
  bool wants_prompt_logprobs() const {
    return num_output() == 0 && request->sampling.prompt_logprobs >= 0 &&
           static_cast<int32_t>(prompt_logprobs.size()) < num_prompt - 1;
  }
};

}  // namespace headwater
