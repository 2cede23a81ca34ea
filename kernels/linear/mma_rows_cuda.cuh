// Products of some rows of activations with block formats, contract in linear_cuda.cuh. Engine
// thread.
#pragma once

#include <cstdint>

#include "kernels/linear/linear_cuda.cuh"

namespace headwater::cuda {

// Whether few enough rows that this is faster than decoding the weight first.
bool can_run_mma_rows(const CudaWeight::Part& part, int64_t x_rows);
// out (+)= x * part^T; x: [out.rows, part.cols] f16, rows at multiples of 16 bytes.
void mma_rows(const CudaWeight::Part& part,
              Matrix x,
              Matrix out,
              bool add,
              int32_t num_processors,
              const Stream& stream);

}  // namespace headwater::cuda
