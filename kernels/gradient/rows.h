// Row operations of attention's forward and reverse passes, in fp32 on the CPU. Any thread. Sums
// run over sixteen lanes in a fixed order, so the instruction set changes no bit.
#pragma once

#include <cstdint>

namespace headwater::gradient {

float max_of(const float* x, int64_t n);
// out = exp(scale * (x - shift)); returns the sum. out may be x.
float exp_of(const float* x, float shift, float scale, int64_t n, float* out);
float dot_of(const float* a, const float* b, int64_t n);
// y += a * x
void add_scaled(float a, const float* x, int64_t n, float* y);
void scale_by(float a, int64_t n, float* x);
// out = a * p * (dp - mean): the gradient through a softmax with weights p. out may be dp.
void softmax_gradient(float a, const float* p, const float* dp, float mean, int64_t n, float* out);
// Sum of |p * (dp - mean) / (1 - p + eps)|: how much the loss moves, to first order, when entries
// are masked one by one and the rest of the row renormalised (MoA, arXiv 2406.14909, section 4.1).
float masking_effect(const float* p, const float* dp, float mean, float eps, int64_t n);

}  // namespace headwater::gradient
