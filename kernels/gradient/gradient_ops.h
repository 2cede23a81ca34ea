// GradientOps: the device seam of reverse passes, as Ops (kernels/ops.h) is that of serving. A
// model forward and back through its activations, all in fp32; weights are frozen, stay in their
// formats and are decoded as they are used.
//
// One thread calls. Operations are asynchronous, in the order of the calls, on whole sequences: row
// i is position i. Matrices are f32 in memory of allocate(), their rows one behind another.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/ops.h"

namespace headwater {

constexpr int32_t kEffectBlockTokens = 64;

// Attention of one layer, each row over the positions up to its own. With gates, a KV head's output
// is alpha * y_full + (1 - alpha) * y_stream, where y_stream sees the first `sinks` positions and
// the latest `recent`; alpha = 1 is y_full, bit for bit.
struct GradientAttention {
  HeadShape heads;
  float scale = 1.0f;
  Matrix qkv;                    // [rows, q | k | v columns], after RoPE
  int64_t first_row = 0;         // outputs of earlier rows are not wanted
  const float* alpha = nullptr;  // [num_kv_heads]; null: no gates
  int32_t sinks = 0, recent = 0;
};

// What is found on the way back beside the gradients; added to. Null: not wanted.
struct AttentionFindings {
  double* d_alpha = nullptr;  // [num_kv_heads], needs gates
  // Sums over blocks of kEffectBlockTokens of |how much the loss moves, to first order, when an
  // entry is masked and the rest of its row renormalised| (MoA, arXiv 2406.14909, section 4.1).
  // [num_heads, num_blocks (row), num_blocks (column)]; without gates
  double* effects = nullptr;
  int32_t num_blocks = 0;
  int64_t first_effect_row = 0;  // entries of earlier rows are left out
};

class GradientOps {
 public:
  enum class Turn : uint8_t { kForward, kBack };

  virtual ~GradientOps() = default;

  virtual Buffer allocate(int64_t bytes) = 0;  // zeroed, 64-byte aligned. May throw CudaError
  virtual int64_t free_bytes() const = 0;      // that allocate() could still give
  // Complete on return; so is all before a download.
  virtual void upload(void* device, const void* host, int64_t bytes) = 0;
  virtual void download(void* host, const void* device, int64_t bytes) = 0;
  virtual void clear(Matrix x) = 0;               // all zero
  virtual void copy(Matrix from, Matrix to) = 0;  // of one shape

  // Parts with the same cols, fused as by Ops::load_weight; the views must stay valid as long as
  // the weight. May throw LoadError or CudaError.
  virtual std::unique_ptr<Weight> load_weight(std::span<const WeightView> parts) = 0;
  // y (+)= x * W^T.  x: [m, W.cols], y: [m, W.rows]
  virtual void linear(const Weight& weight, Matrix x, Matrix y, LinearMode mode) = 0;
  // dx = dy * W
  virtual void linear_backward(const Weight& weight, Matrix dy, Matrix dx) = 0;
  virtual void add_bias(Matrix x, const float* bias) = 0;  // x[r, :] += bias[:]
  // y = x / sqrt(mean(x^2) + eps) * weight, and the way back: dx += the gradient by x.
  virtual void rms_norm(Matrix x, const float* weight, float eps, Matrix y) = 0;
  virtual void rms_norm_backward(
      Matrix x, const float* weight, float eps, Matrix dy, Matrix dx) = 0;
  // Rotates q and k of every row by its position's angles, or by the transpose of that (magnitude
  // included).  qkv: [rows, q | k | v columns]
  virtual void rotate(const RopeSpec& rope, const HeadShape& heads, Turn turn, Matrix qkv) = 0;
  // out = silu(gate) * up.  gate_up, d_gate_up: [m, 2 * n], gate first; out, d_out: [m, n]
  virtual void silu_mul(Matrix gate_up, Matrix out) = 0;
  virtual void silu_mul_backward(Matrix gate_up, Matrix d_out, Matrix d_gate_up) = 0;
  // out: [rows, q columns], from first_row on
  virtual void attention(const GradientAttention& args, Matrix out) = 0;
  // d_out: [rows, q columns], zero before first_row -> d_qkv: [rows, q | k | v columns]
  virtual void attention_backward(const GradientAttention& args,
                                  Matrix d_out,
                                  Matrix d_qkv,
                                  const AttentionFindings& findings) = 0;
};

// Threads change no bit. The pool is not owned and must outlive what is made.
std::unique_ptr<GradientOps> make_cpu_gradient_ops(ThreadPool& pool);
// The first visible GPU; cuda_obstacle() says what may be in the way. Throws ConfigError with it.
std::unique_ptr<GradientOps> make_cuda_gradient_ops();

}  // namespace headwater
