// Ops in front of another one, for tests that watch or disturb what a device is asked.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "kernels/ops.h"

namespace headwater::testing {

class ForwardingOps : public Ops {
 public:
  explicit ForwardingOps(std::unique_ptr<Ops> inner) : inner_(std::move(inner)) {}

  std::string_view name() const override { return inner().name(); }
  std::string_view description() const override { return inner().description(); }
  DType activation_dtype() const override { return inner().activation_dtype(); }
  DType linear_dtype(const Weight& weight, int64_t num_rows) const override {
    return inner().linear_dtype(weight, num_rows);
  }
  DType default_kv_format() const override { return inner().default_kv_format(); }
  bool supports_kv(const PageShape& page) const override { return inner().supports_kv(page); }
  bool memory_is_host() const override { return inner().memory_is_host(); }
  DeviceBytes device_memory() const override { return inner().device_memory(); }

  void reserve(int32_t max_tokens) override { inner().reserve(max_tokens); }
  Buffer allocate(int64_t bytes) override { return inner().allocate(bytes); }
  Buffer allocate_staging(int64_t bytes) override { return inner().allocate_staging(bytes); }
  void upload(void* device, const void* host, int64_t bytes) override {
    inner().upload(device, host, bytes);
  }
  void upload_early(void* device, const void* host, int64_t bytes) override {
    inner().upload_early(device, host, bytes);
  }
  void download(void* host, const void* device, int64_t bytes) override {
    inner().download(host, device, bytes);
  }
  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    return inner().load_weight(parts);
  }

  void embed(const Weight& table, const StepView& step, float scale, Matrix out) override {
    inner().embed(table, step, scale, out);
  }
  void rms_norm(Matrix x, const float* weight, float eps, Matrix out) override {
    inner().rms_norm(x, weight, eps, out);
  }
  void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads) override {
    inner().head_norm(x, weight, eps, num_heads);
  }
  void linear(const Weight& weight, Matrix x, Matrix out, LinearMode mode) override {
    inner().linear(weight, x, out, mode);
  }
  void fused_linear(const Weight& weight, const FusedLinear& args) override {
    inner().fused_linear(weight, args);
  }
  void add_bias(Matrix x, const float* bias) override { inner().add_bias(x, bias); }
  void add_scaled(Matrix x, float scale, Matrix out) override { inner().add_scaled(x, scale, out); }
  void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out) override {
    inner().rope_angles(rope, step, out);
  }
  void rope_append_kv(int32_t layer,
                      const HeadShape& heads,
                      const RopeSpec& rope,
                      const StepView& step,
                      Matrix angles,
                      Matrix q,
                      Matrix k,
                      Matrix v) override {
    inner().rope_append_kv(layer, heads, rope, step, angles, q, k, v);
  }
  void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step) override {
    inner().fold_kv(layer, heads, step);
  }
  void attention(const AttentionArgs& args, const StepView& step) override {
    inner().attention(args, step);
  }
  void silu_mul(Matrix gate_up, Matrix out) override { inner().silu_mul(gate_up, out); }
  void gelu_mul(Matrix gate_up, Matrix out) override { inner().gelu_mul(gate_up, out); }
  void softcap(Matrix x, float cap) override { inner().softcap(x, cap); }
  void gather_logit_rows(Matrix x, const StepView& step, Matrix out) override {
    inner().gather_logit_rows(x, step, out);
  }
  void top_logits(Matrix logits, TopLogits* out) override { inner().top_logits(logits, out); }
  void draw_tokens(Matrix logits,
                   const TopLogits* tops,
                   const TokenDraw* draws,
                   int32_t* tokens,
                   int32_t* staged) override {
    inner().draw_tokens(logits, tops, draws, tokens, staged);
  }
  void take_tokens(const int32_t* drawn, int32_t* ids, int64_t count) override {
    inner().take_tokens(drawn, ids, count);
  }
  void copy_pages(std::byte* arena,
                  int64_t page_bytes,
                  std::span<const PageId> from,
                  std::span<const PageId> to) override {
    inner().copy_pages(arena, page_bytes, from, to);
  }
  void write_table(int32_t* table, const TableEntry* entries, int64_t count) override {
    inner().write_table(table, entries, count);
  }
  void replay(uint64_t key, const std::function<void()>& body) override {
    inner().replay(key, body);
  }
  void synchronize() override { inner().synchronize(); }
  int64_t mark() override { return inner().mark(); }
  void wait(int64_t mark) override { inner().wait(mark); }
  void fetch(void* host, const void* device, int64_t bytes) override {
    inner().fetch(host, device, bytes);
  }

 protected:
  // Every call goes through here.
  virtual Ops& inner() const { return *inner_; }

 private:
  std::unique_ptr<Ops> inner_;
};

// Records nothing: a step's operations run one by one.
class EagerOps final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;
  void replay(uint64_t /*key*/, const std::function<void()>& body) override { body(); }
};

}  // namespace headwater::testing
