// Penalties: which tokens a sequence has used, and what that does to the next logits.
// Formulas and order are vLLM's: repetition (CTRL, Keskar et al. 2019, over prompt and output),
// then frequency and presence (OpenAI's, over the output).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace headwater {

class Penalties final {
 public:
  // Keeps no history unless a penalty is set.
  Penalties(const SamplingParams& params, std::span<const int32_t> prompt);

  bool active() const { return active_; }  // whether apply() changes anything, ever
  void accept(int32_t token);
  // Costs O(distinct tokens seen). logits: [vocab_size]
  void apply(std::span<float> logits) const;

 private:
  struct Seen {
    int32_t token = 0;
    int32_t num_output = 0;  // 0: in the prompt only
  };

  float repetition_;
  float presence_;
  float frequency_;
  bool active_;
  std::vector<Seen> seen_;  // by token, each once
};

}  // namespace headwater
