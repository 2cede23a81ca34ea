// Model: weights on a device and the layer loop over them. Engine thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/model/loaded_model.h"
#include "kernels/ops.h"

namespace headwater {

// What an observer sees of one layer's attention, in device memory, until it returns.
struct AttentionView {
  int32_t layer = 0;
  HeadShape heads;
  float scale = 1.0f;    // logit = scale * q.k, if softcap is 0
  float softcap = 0.0f;  // > 0: logit = softcap * tanh(scale * q.k / softcap)
  Matrix q;              // [num_rows, num_heads * head_dim], after RoPE
  Matrix k;              // [num_rows, num_kv_heads * head_dim], after RoPE, as it went to the pages
  Matrix lse;            // [num_rows, num_heads] log of each row's sum of exp(logit)
};
using AttentionObserver = std::function<void(const AttentionView&, const StepView&)>;

class Model {
 public:
  struct Limits {
    int32_t max_rows = 0;        // of one step
    int32_t max_logit_rows = 0;  // likewise
    int32_t num_logit_buffers = 1;
  };
  // files and ops are not owned and outlive the model: embeddings are read from the files.
  // progress(done, total) counts bytes read. Throws LoadError.
  Model(const LoadedModel& files,
        Ops& ops,
        const Limits& limits,
        const std::function<void(int64_t done, int64_t total)>& progress = {});

  const ModelSpec& spec() const { return spec_; }
  const Limits& limits() const { return limits_; }

  // Runs every layer over the step's rows and appends their K and V to the pages. Returns the
  // logits, [num_logit_rows, vocab_size] in device memory, valid until the next call with this
  // buffer of theirs. The last num_long_rows rows are of sequences of more than spec().long_after
  // tokens, where there is such a bound.
  Matrix forward(const StepView& step, int32_t num_long_rows = 0, int32_t logit_buffer = 0);
  Matrix logits(int32_t num_rows, int32_t logit_buffer = 0) const;  // where forward() leaves them
  // Called after each layer's attention from now on; for calibration, never in serving. {}: nobody.
  void observe_attention(AttentionObserver observer);

 private:
  struct Vector {  // a norm's or bias' values on the device; data() == nullptr: absent
    Buffer buffer;
    const float* data() const { return buffer.as<float>(); }
  };
  struct Layer {
    Vector attn_norm, ffn_norm, attn_post_norm, ffn_post_norm, q_norm, k_norm, qkv_bias, o_bias;
    std::unique_ptr<Weight> qkv, o, gate_up, down;
  };

  Vector upload(std::initializer_list<const WeightView*> parts, float scale = 1.0f);
  Matrix scratch(const Buffer& buffer, int64_t rows, int64_t cols) const;
  Matrix scratch_of(const Weight& weight, const Buffer& buffer, int64_t rows, int64_t cols) const;
  void rotate(std::span<const RopeSpec> ropes, const StepView& step, int32_t first, int32_t count);
  void begin_branch(const Vector& norm, const Weight& weight, Gate gate, Matrix x, Matrix out);
  void add_branch(
      const Weight& weight, const Vector& bias, const Vector& norm, Matrix branch, Matrix x);
  void normalize_heads(const Vector& norm, int32_t num_heads, Matrix x);
  void attention_block(int32_t layer, const StepView& step, Matrix x);
  void ffn_block(int32_t layer, const StepView& step, Matrix x);

  const ModelSpec& spec_;  // of files
  Ops& ops_;
  Limits limits_;
  std::unique_ptr<Weight> embedding_, output_;  // output_ null: tied
  Vector output_norm_;
  std::vector<Layer> layers_;
  std::vector<Buffer> angles_;  // one per distinct RopeSpec
  Buffer residual_, normed_, wide_, narrow_;
  std::vector<Buffer> logits_;
  AttentionObserver observer_;
  Buffer lse_;  // while observed
};

}  // namespace headwater
