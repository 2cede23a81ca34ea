// CpuOps: the product on a machine without a GPU. fp32 activations; weights as stored.
#include <iterator>
#include <string>

#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/fold_cpu.h"
#include "kernels/attention/paged_kv_cpu.h"
#include "kernels/base/check.h"
#include "kernels/base/host_buffer.h"
#include "kernels/linear/linear_cpu.h"
#include "kernels/norm/norm_cpu.h"
#include "kernels/ops.h"
#include "kernels/ops_host.h"
#include "kernels/rope/rope_cpu.h"

namespace headwater {
namespace {

const cpu::CpuWeight& packed(const Weight& weight) {
  return static_cast<const cpu::CpuWeight&>(weight);
}

class CpuOps final : public Ops {
 public:
  explicit CpuOps(ThreadPool& pool) : pool_(pool) {
    const int threads = pool.num_threads();
    description_ = std::string("CPU, ") + cpu::instruction_set() + ", " + std::to_string(threads) +
                   (threads == 1 ? " thread" : " threads");
  }

  std::string_view name() const override { return "cpu"; }
  std::string_view description() const override { return description_; }
  DType activation_dtype() const override { return DType::kF32; }
  DType default_kv_format() const override { return DType::kF16; }
  bool supports_kv(const PageShape& page) const override {
    return page.head_dim > 0 && page.head_dim % 16 == 0 && page.page_tokens > 0 &&
           page.page_tokens % cpu::kGroupTokens == 0;
  }

  Buffer allocate(int64_t bytes) override { return allocate_host(bytes); }

  std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) override {
    auto weight = std::make_unique<cpu::CpuWeight>();
    weight->cols = parts[0].cols;
    for (const WeightView& view : parts) {
      HW_CHECK(view.cols == weight->cols, "fused parts differ in their inputs", view.cols);
      cpu::PackedPart part;
      part.source = view;
      part.num_tiles = (view.rows + cpu::kTileRows - 1) / cpu::kTileRows;
      part.tile_bytes = cpu::packed_tile_bytes(view.format, view.cols);
      part.first_tile = weight->num_tiles;
      part.first_col = weight->rows;
      part.data = allocate(part.num_tiles * part.tile_bytes);
      pool_.parallel_for(part.num_tiles, [&](int64_t tile, int) {
        cpu::pack_tile(view, tile, part.data.as<uint8_t>() + tile * part.tile_bytes);
      });
      weight->num_tiles += part.num_tiles;
      weight->rows += view.rows;
      weight->parts.push_back(std::move(part));
    }
    return weight;
  }

  void embed(const Weight& table, const StepView& step, float scale, Matrix out) override {
    const WeightView& source = packed(table).parts[0].source;
    const QuantTraits& traits = quant_traits(source.format);
    const int64_t stride = row_bytes(source.format, source.cols);
    pool_.parallel_for(step.num_rows, [&](int64_t row, int) {
      float* values = out.f32_row(row);
      traits.decode(static_cast<const std::byte*>(source.data) + step.token_ids[row] * stride,
                    source.cols / traits.block_elements,
                    values);
      for (int64_t c = 0; c < out.cols; ++c) values[c] *= scale;
    });
  }

  void rms_norm(Matrix x, const float* weight, float eps, Matrix out) override {
    cpu::rms_norm(x, weight, eps, out, pool_);
  }
  void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads) override {
    cpu::head_norm(x, weight, eps, num_heads, pool_);
  }
  void linear(const Weight& weight, Matrix x, Matrix out, LinearMode mode) override {
    cpu::linear(packed(weight), x, out, mode, pool_, activations_);
  }
  void add_bias(Matrix x, const float* bias) override { cpu::add_bias(x, bias, pool_); }
  void add_scaled(Matrix x, float scale, Matrix out) override {
    cpu::add_scaled(x, scale, out, pool_);
  }
  void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out) override {
    cpu::rope_angles(rope, step, out, pool_);
  }
  void rope_append_kv(int32_t layer,
                      const HeadShape& heads,
                      const RopeSpec& rope,
                      const StepView& step,
                      Matrix angles,
                      Matrix q,
                      Matrix k,
                      Matrix v) override {
    cpu::rope_append_kv(layer, heads, rope, step, angles, q, k, v, pool_);
  }
  void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step) override {
    cpu::fold_kv(layer, heads, step, pool_);
  }
  void attention(const AttentionArgs& args, const StepView& step) override {
    cpu::attention(args, step, pool_, attention_);
  }
  void silu_mul(Matrix gate_up, Matrix out) override { cpu::silu_mul(gate_up, out, pool_); }
  void gelu_mul(Matrix gate_up, Matrix out) override { cpu::gelu_mul(gate_up, out, pool_); }
  void softcap(Matrix x, float cap) override { cpu::softcap(x, cap, pool_); }

  void gather_logit_rows(Matrix x, const StepView& step, Matrix out) override {
    gather_logit_rows_host(x, step, out);
  }

  void copy_pages(std::byte* arena,
                  int64_t page_bytes,
                  std::span<const PageId> from,
                  std::span<const PageId> to) override {
    pool_.parallel_for(std::ssize(from), [&](int64_t i, int) {
      const auto at = static_cast<size_t>(i);
      copy_pages_host(arena, page_bytes, from.subspan(at, 1), to.subspan(at, 1));
    });
  }

  void synchronize() override {}

 private:
  ThreadPool& pool_;  // not owned
  std::string description_;
  cpu::ActivationScratch activations_;
  cpu::AttentionScratch attention_;
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool) { return std::make_unique<CpuOps>(pool); }

}  // namespace headwater
