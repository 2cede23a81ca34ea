// Products of some rows of activations with F16 weights on Hopper, contract in linear_cuda.cuh.
// Engine thread.
#pragma once

#include <cstdint>

#include "kernels/linear/linear_cuda.cuh"

namespace headwater::cuda {

// Whether few enough rows for this, and too many for few_rows().
bool can_run_half_rows(const CudaWeight::Part& part, int64_t x_rows);
// out = gate(x * part^T), or out (+)= x * part^T; x: f16, rows at multiples of 16 bytes; no norm.
void half_rows(const CudaWeight::Part& part,
               const FusedLinear& product,
               bool add,
               const Stream& stream);

}  // namespace headwater::cuda
