// Row-wise operations of CudaOps, contracts in kernels/ops.h. Asynchronous on the stream. What
// norms, gates and biases read and write is f32 or f16; sums and all else are f32.
#pragma once

#include <cstdint>

#include "kernels/base/cuda.cuh"
#include "kernels/base/tensor.h"

namespace headwater::cuda {

void rms_norm(Matrix x, const float* weight, float eps, Matrix out, const Stream& stream);
void add_bias(Matrix x, const float* bias, const Stream& stream);
void silu_mul(Matrix gate_up, Matrix out, const Stream& stream);
// out[i, :] = x[rows[i], :]; rows: [out.rows], device
void gelu_mul(Matrix gate_up, Matrix out, const Stream& stream);
void add_scaled(Matrix x, float scale, Matrix out, const Stream& stream);  // out += scale * x
void softcap(Matrix x, float cap, const Stream& stream);
// rms_norm of each of a row's num_heads parts by itself, in place; weight: of one part.
void head_norm(Matrix x, const float* weight, float eps, int32_t num_heads, const Stream& stream);
void gather_rows(Matrix x, const int32_t* rows, Matrix out, const Stream& stream);

}  // namespace headwater::cuda
