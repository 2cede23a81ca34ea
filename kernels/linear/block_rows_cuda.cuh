// Products of some rows of activations with block formats on Hopper, contract in linear_cuda.cuh.
// Engine thread.
#pragma once

#include <cstdint>

#include "kernels/linear/linear_cuda.cuh"

namespace headwater::cuda {

constexpr int kFewestBlockRows = 2;
bool can_run_block_rows(const CudaWeight::Part& part, int64_t x_rows);
int64_t arranged_bytes(int64_t cols);  // of the most rows
// x as block_rows() takes it, in the scratch: rows of whole multiples of 128 f16, one behind
// another.
Matrix arrange(Matrix x, void* scratch, const Stream& stream);
// out = gate(x * part^T), or out (+)= x * part^T; x: as arrange() left it; no norm.
void block_rows(const CudaWeight::Part& part,
                const FusedLinear& product,
                bool add,
                int32_t num_processors,
                const Stream& stream);

}  // namespace headwater::cuda
