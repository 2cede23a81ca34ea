// Attention of GradientOps on the GPU, contracts in gradient_ops.h. Logits of some hundred rows of
// all heads at a time are written out: products are cuBLAS's, what lies between them is kernels
// over rows of logits. Asynchronous on the stream; sums run in one order.
#pragma once

#include "kernels/gradient/gradient_ops.h"
#include "kernels/linear/cublas.cuh"

namespace headwater::cuda {

// Grows with the sequences, never shrinks.
struct GradientScratch {
  Buffer logits, d_logits;  // [num_heads, rows of a tile, keys]
  Buffer k, v, d_k, d_v;    // [rows, q columns]: as if each query head had its own
  Buffer effects;           // [num_heads, rows of a tile, num_blocks]: of each row
  Buffer d_alpha;           // [num_heads, rows]
};

void gradient_attention(const GradientAttention& args,
                        Matrix out,
                        GradientScratch& scratch,
                        const Cublas& cublas,
                        const Stream& stream);
void gradient_attention_backward(const GradientAttention& args,
                                 Matrix d_out,
                                 Matrix d_qkv,
                                 const AttentionFindings& findings,
                                 GradientScratch& scratch,
                                 const Cublas& cublas,
                                 const Stream& stream);

}  // namespace headwater::cuda
