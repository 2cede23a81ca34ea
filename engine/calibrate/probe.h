// Probe: what a model answers if its heads keep by other rules. It reads a prompt once, every head
// keeping everything, and then evaluates rows behind it under any rule per head: what a row sees is
// a list of numbers that the probe fills itself, so trying a rule costs those rows and no prefill.
//
//   prompt            | rows under trial
//   everything seen   | by rule                  = the server's faithful mode, bit for bit
//
// Rows of a trial write their K and V at their own positions and are written over by the next one.
// Thread: the caller's; one at a time. Works on any Ops.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/model.h"
#include "kvcache/kv_geometry.h"

namespace headwater {

// A prompt that a probe has read: K and V of every token in every head, [heads] rows of pages.
// Moves; holds roughly the bytes of a dense cache of max_tokens.
class ProbePrompt {
 public:
  std::span<const int32_t> tokens() const { return tokens_; }
  std::span<const float> logits() const { return logits_; }  // behind the last token, [vocab]
  int32_t max_tokens() const { return max_tokens_; }
  int64_t bytes() const { return arena_.bytes(); }

 private:
  friend class Probe;
  // Sums of K and V before each block depend on where sinks end and blocks begin.
  struct Records {
    int32_t sink_tokens = 0;
    int32_t block_tokens = 0;  // 0: there are none
    bool operator==(const Records&) const = default;
  };
  std::vector<int32_t> tokens_;
  std::vector<float> logits_;
  int32_t max_tokens_ = 0;
  Buffer arena_, tables_, table_begin_;
  std::vector<Records> records_;  // [heads], as they lie in the arena over tokens_
};

class Probe {
 public:
  // [num_layers, num_kv_heads], as in kv::KvGeometry, which rounds them the same way here.
  using Rules = std::span<const kv::RetentionRule>;

  // model and ops are not owned. A step of the probe has at most the model's rows and logit rows.
  Probe(Model& model, Ops& ops, int32_t page_tokens = 16);

  Model& model() { return model_; }
  Ops& ops() { return ops_; }
  const ModelSpec& spec() const { return model_.spec(); }
  int32_t num_heads() const { return static_cast<int32_t>(heads_.size()); }  // of KV, all layers
  int32_t vocab_size() const { return model_.spec().vocab_size; }

  // Reads tokens (at least one) with everything visible. max_new_tokens: how many rows a trial may
  // put behind them.
  ProbePrompt read(std::span<const int32_t> tokens, int32_t max_new_tokens);

  // Logits behind each of `tokens`, which follow the prompt: [tokens.size(), vocab]. What comes
  // before the first of them is prompt.logits().
  std::vector<float> logits(ProbePrompt& prompt, Rules rules, std::span<const int32_t> tokens);

  // The likeliest tokens behind prompt and `follow` (teacher-forced, may be empty), until one of
  // stop_ids (left out) or max_tokens of them. Ties: the lower id.
  std::vector<int32_t> greedy(ProbePrompt& prompt,
                              Rules rules,
                              int32_t max_tokens,
                              std::span<const int32_t> stop_ids,
                              std::span<const int32_t> follow = {});

 private:
  void set_rules(ProbePrompt& prompt, Rules rules);
  // Rows of `tokens` from first_position on; appends the last num_logit_rows rows' logits to out.
  void run(const ProbePrompt& prompt,
           std::span<const int32_t> tokens,
           int32_t first_position,
           int32_t num_logit_rows,
           std::vector<float>& out);
  StepView make_step(const ProbePrompt& prompt,
                     std::span<const int32_t> tokens,
                     int32_t first_position,
                     int32_t num_logit_rows);

  Model& model_;
  Ops& ops_;
  kv::KvGeometry geometry_;  // of the rules in force
  PageShape page_;
  std::vector<KvHeadSlot> heads_;     // every head a group of its own
  std::vector<KvGroupShape> groups_;  // [heads], of the rules in force
  Buffer device_heads_, device_groups_, token_ids_, positions_, row_seq_, row_begin_, logit_rows_;
  Buffer window_start_;
};

}  // namespace headwater
