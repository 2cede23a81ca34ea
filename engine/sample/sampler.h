// Sampler: one choice's way from logits to the next token. Thread: the engine thread.
//
// The steps, in this order; those up to the penalties change the argmax and hold for greedy too:
//   1 logit_bias          added to the raw logits (OpenAI)
//   2 min_tokens          eos and stop ids are masked before that many output tokens (vLLM)
//   3 penalties           repetition, then frequency and presence (penalties.h)
//   4 temperature 0       greedy: the exact argmax, lowest id among equals
//   5 temperature         logits / temperature, softmax
//   6 top_k               the k likeliest (Fan et al. 2018), lowest id among equals
//   7 typical_p           the least mass p of tokens whose surprise is nearest the entropy
//                         (Meister et al. 2022)
//   8 top_p               the fewest likeliest tokens with mass p (Holtzman et al. 2019)
//   9 min_p               at least min_p times as likely as the likeliest (Nguyen et al. 2024)
//  10 draw                inverse CDF at philox_uniform(seed, choice, position), over the tokens
//                         likeliest first after top_k or top_p, by id otherwise
// Steps 7 and 8 measure mass among the tokens that the step before left over.
//
// The draw depends on (seed, choice, position) and the logits alone, so the same seed gives the
// same text whatever the batch, and after a preemption. NaN logits rank last, +inf first; if
// everything is masked, token 0 is returned.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/request.h"
#include "engine/sample/penalties.h"
#include "engine/sample/softmax.h"
#include "kernels/sample/token_draw.h"

namespace headwater {

struct SampledToken {
  int32_t token = 0;
  TokenLogprobs logprobs;  // set if params.logprobs >= 0
};

// Room that all samplers of a thread share; grows to one row and stays.
struct SamplerScratch {
  std::vector<float> raw_logits;
  std::vector<double> block_sums;
  std::vector<Candidate> candidates;
};

// log_softmax of the row as the model gave it: of `chosen`, and of the k likeliest, most likely
// first, lowest id among equals (fewer than k if fewer are finite). k <= 0: chosen only.
TokenLogprobs logprobs_of(std::span<const float> logits, int32_t chosen, int32_t k);

class Sampler final {
 public:
  // params must have passed validate() for this vocab_size; eos_ids and prompt ids outside
  // [0, vocab_size) are ignored. seed: params.seed or what the engine drew for the request.
  Sampler(const SamplingParams& params,
          int32_t vocab_size,
          std::span<const int32_t> eos_ids,
          uint64_t seed,
          int32_t choice,
          std::span<const int32_t> prompt);

  // logits: [vocab_size], raw; overwritten. output_position: output tokens before this one. Has no
  // effect on later draws: call accept() with the token that was really appended.
  // Logprobs are of the raw logits, before any of the steps above (vLLM's default).
  SampledToken sample(std::span<float> logits, int32_t output_position, SamplerScratch& scratch);

  // The same draw for a device; left to the host where it needs what only the host has.
  TokenDraw token_draw(int32_t output_position) const;

  // Appends to the output history. Also how a sequence that is rebuilt catches up.
  void accept(int32_t token);

 private:
  void adjust(std::span<float> logits, int32_t output_position) const;
  int32_t draw(std::span<float> logits, int32_t output_position, SamplerScratch& scratch) const;
  // Steps 6 to 9: fills candidates, weights relative to the largest logit.
  void truncate(std::span<float> logits, float max, SamplerScratch& scratch) const;

  float temperature_;
  int32_t top_k_;  // 0 = off
  float top_p_;
  float min_p_;
  float typical_p_;
  int32_t logprobs_;
  int32_t min_tokens_;
  int32_t vocab_size_;
  uint32_t choice_;
  uint64_t seed_;
  std::vector<std::pair<int32_t, float>> logit_bias_;
  std::vector<int32_t> ending_ids_;  // eos and stop ids, if min_tokens asks for them
  Penalties penalties_;
};

}  // namespace headwater
