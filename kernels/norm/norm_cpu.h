// Row-wise element operations of CpuOps. Each row in one fixed order: its bits are its own.
#pragma once

#include "kernels/base/tensor.h"
#include "kernels/base/thread_pool.h"

namespace headwater::cpu {

// out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
void rms_norm(Matrix x, const float* weight, float eps, Matrix out, ThreadPool& pool);
// The same over each of num_heads equal parts of a row, in place.
void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads, ThreadPool& pool);
// out = silu(gate) * up; gate_up: [m, 2 * out.cols], gate first.
void silu_mul(Matrix gate_up, Matrix out, ThreadPool& pool);
// The same with gelu's approximation by tanh.
void gelu_mul(Matrix gate_up, Matrix out, ThreadPool& pool);
// x = cap * tanh(x / cap)
void softcap(Matrix x, float cap, ThreadPool& pool);
// x[r, :] += bias
void add_bias(Matrix x, const float* bias, ThreadPool& pool);
// out += scale * x
void add_scaled(Matrix x, float scale, Matrix out, ThreadPool& pool);

// What the dispatch chose: "AVX-512 VNNI".
const char* instruction_set();

}  // namespace headwater::cpu
