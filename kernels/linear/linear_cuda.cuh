// Products and rows of weights on the GPU, contracts in kernels/ops.h. A weight stays in its
// format: its blocks are decoded where they are used. Asynchronous on the stream. Engine thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/linear/cublas.cuh"
#include "kernels/linear/weight_upload_cuda.cuh"
#include "kernels/ops.h"

namespace headwater::cuda {

struct CudaWeight final : Weight {
  struct Part {  // fused views of one format
    QuantFormat format = QuantFormat::kF32;
    int64_t rows = 0, cols = 0;
    int64_t first_col = 0;  // of the output
    int most_few_rows = 0;  // of activations, that few_rows() takes
    int64_t row_bytes = 0;  // as layout_cuda.cuh has them
    const uint8_t* data = nullptr;
    Buffer bytes;
  };
  std::vector<Part> parts;
};

// What products work in; grows with the weights loaded, never in a step.
struct LinearScratch {
  Buffer x;         // few rows quantised, or many as f16
  Buffer decoded;   // rows of a weight as f16 (of F32 and odd widths: f32), on their way to cuBLAS
  Buffer arranged;  // some rows, as block_rows() takes them
};

// Throws LoadError for a format that the GPU does not have. load_weight() also makes the scratch
// that linear() needs of it.
std::unique_ptr<CudaWeight> place_weight(std::span<const WeightView> views,
                                         WeightUpload& upload,
                                         const Stream& stream);
// deterministic: up to 4 rows of activations have the bits that each has alone.
std::unique_ptr<CudaWeight> load_weight(std::span<const WeightView> views,
                                        bool deterministic,
                                        LinearScratch& scratch,
                                        int64_t device_bytes,
                                        WeightUpload& upload,
                                        const Stream& stream);

// As Ops::linear_dtype.
DType linear_dtype(const CudaWeight& weight, int64_t num_rows);

// Whether linear() does the norm and the gate, if any, on the way: products of few rows do, and
// those of some rows on Hopper do the gate.
bool can_fuse(const CudaWeight& weight, const FusedLinear& product);

// out = gate(norm(x) * W^T) where can_fuse(), or out (+)= x * W^T without norm and gate.
// Up to 4 rows (8 of F32 and BF16; of blocks 1 on Hopper unless deterministic): on the blocks,
// scalar formats in fp32, others with activations of 15 bits (dots_cuda.cuh). More: the weight and
// the activations as f16, 11 significant bits, on the tensor cores, summed in fp32; up to 64 rows
// on Hopper F16 weights and blocks come at what memory gives (half_rows_cuda.cuh,
// block_rows_cuda.cuh), elsewhere blocks are decoded on the way (mma_rows_cuda.cuh). F32 weights
// likewise in TF32.
void linear(const CudaWeight& weight,
            const FusedLinear& product,
            bool add,
            const LinearScratch& scratch,
            int32_t num_processors,
            const Cublas& cublas,
            const Stream& stream);

// Rows [first_row, first_row + num_rows) in f32, exactly.  out: [num_rows, part.cols]
void decode(const CudaWeight::Part& part,
            int64_t first_row,
            int64_t num_rows,
            float* out,
            const Stream& stream);

// As Ops::embed; token_ids: device.
void embed(const CudaWeight& table,
           const int32_t* token_ids,
           float scale,
           Matrix out,
           const Stream& stream);

}  // namespace headwater::cuda
