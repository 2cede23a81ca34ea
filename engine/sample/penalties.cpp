#include "engine/sample/penalties.h"

#include <algorithm>

namespace headwater {

Penalties::Penalties(const SamplingParams& params, std::span<const int32_t> prompt)
    : repetition_(params.repetition_penalty),
      presence_(params.presence_penalty),
      frequency_(params.frequency_penalty),
      active_(repetition_ != 1.0f || presence_ != 0.0f || frequency_ != 0.0f) {
  if (repetition_ == 1.0f) return;  // only it looks at the prompt
  std::vector<int32_t> tokens(prompt.begin(), prompt.end());
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  seen_.reserve(tokens.size());
  for (const int32_t token : tokens) seen_.push_back({.token = token});
}

void Penalties::accept(int32_t token) {
  if (!active_) return;
  auto it = std::lower_bound(seen_.begin(), seen_.end(), token, [](const Seen& seen, int32_t id) {
    return seen.token < id;
  });
  if (it == seen_.end() || it->token != token) it = seen_.insert(it, {.token = token});
  ++it->num_output;
}

void Penalties::apply(std::span<float> logits) const {
  if (!active_) return;
  for (const Seen& seen : seen_) {
    float& logit = logits[seen.token];
    logit = logit > 0.0f ? logit / repetition_ : logit * repetition_;
    logit -= frequency_ * static_cast<float>(seen.num_output);
    if (seen.num_output > 0) logit -= presence_;
  }
}

}  // namespace headwater
