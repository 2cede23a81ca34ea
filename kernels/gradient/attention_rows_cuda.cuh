// What lies between the products of attention_cuda: rows of logits, there and back. Asynchronous on
// the stream; sums run in one order.
#pragma once

#include "kernels/base/cuda.cuh"
#include "kernels/gradient/gradient_ops.h"

namespace headwater::cuda {

// Logits of rows [first_row, end) over keys [0, end), of all heads; a row sees the keys up to its
// own.
struct LogitTile {
  float *logits = nullptr, *d_logits = nullptr;  // [num_heads, rows, end], by these strides:
  int64_t stride = 0, head_stride = 0;
  int64_t first_row = 0, end = 0;
  int32_t num_heads = 0, group = 1;  // query heads; of them to a KV head
  float scale = 1.0f;
  const float* alpha = nullptr;  // [num_kv_heads]; null: no gates
  int64_t sinks = 0, recent = 0;

  int64_t rows() const { return end - first_row; }
};

// What each row finds, before it is added up.
struct RowFindings {
  float* d_alpha = nullptr;  // [num_heads, num_rows], with gates
  int64_t num_rows = 0;      // of the sequence
  float* effects = nullptr;  // [num_heads, rows of the tile, num_blocks]; null: not wanted
  int32_t num_blocks = 0;
};

// Logits into attention weights.
void softmax_rows(const LogitTile& tile, const Stream& stream);
// The same, and the gradients by weights, in d_logits, into those by logits.
void softmax_rows_backward(const LogitTile& tile, const RowFindings& found, const Stream& stream);
// effects: as AttentionFindings::effects; rows from first_effect_row on are added.
void add_effects(const LogitTile& tile,
                 const RowFindings& found,
                 int64_t first_effect_row,
                 double* effects,
                 const Stream& stream);
// d_alpha: [num_kv_heads]; rows from first_row on are added.
void add_alpha(const RowFindings& found,
               int64_t first_row,
               int32_t num_kv_heads,
               int32_t group,
               double* d_alpha,
               const Stream& stream);

// k, v: [rows, q columns], as if each query head had its own, and the sums over a KV head's on the
// way back.  qkv, d_qkv: [rows, q | k | v columns]
void spread_heads(Matrix qkv, const HeadShape& heads, Matrix k, Matrix v, const Stream& stream);
void gather_heads(
    Matrix d_k, Matrix d_v, const HeadShape& heads, Matrix d_qkv, const Stream& stream);

}  // namespace headwater::cuda
