#include "kernels/base/launch_cuda.cuh"
#include "kernels/gradient/attention_rows_cuda.cuh"

namespace headwater::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kBlock = kEffectBlockTokens;
constexpr float kEffectEps = 1e-5f;  // where one entry holds the whole row
constexpr float kLowest = -3.4e38f;

// What the gates' windows see of n positions: [0, sinks) and [recent, n).
struct Window {
  int64_t sinks, recent;
  __device__ Window(const LogitTile& tile, int64_t n) : recent(max(int64_t{0}, n - tile.recent)) {
    sinks = min(tile.sinks, recent);
  }
  __device__ bool has(int64_t position) const { return position < sinks || position >= recent; }
};

struct Largest {
  __device__ static float of(float a, float b) { return fmaxf(a, b); }
};
struct Sum {
  __device__ static float of(float a, float b) { return a + b; }
};

// Of the block's values, to every thread, in one order.
template <typename Operation>
__device__ float reduce(float value) {
  __shared__ float partial[kWarps];
  for (int offset = 16; offset > 0; offset /= 2)
    value = Operation::of(value, __shfl_xor_sync(~0u, value, offset));
  __syncthreads();  // whoever still reads the last result
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float result = partial[0];
  for (int i = 1; i < kWarps; ++i) result = Operation::of(result, partial[i]);
  return result;
}

// Block (row of the tile, head): logits into attention weights, of a full head or mixed with a
// window's.
template <bool kGated>
__global__ void __launch_bounds__(kThreads) softmax_kernel(LogitTile tile) {
  wait_for_previous();
  const int64_t n = tile.first_row + blockIdx.x + 1;
  float* row = tile.logits + blockIdx.y * tile.head_stride + blockIdx.x * tile.stride;
  const float alpha = kGated ? tile.alpha[blockIdx.y / tile.group] : 1.0f;
  const bool mixed = kGated && alpha != 1.0f;
  const Window window(tile, n);

  float most = kLowest, most_near = kLowest;
  for (int64_t c = threadIdx.x; c < n; c += kThreads) {
    most = fmaxf(most, row[c]);
    if (mixed && window.has(c)) most_near = fmaxf(most_near, row[c]);
  }
  most = reduce<Largest>(most);
  if (mixed) most_near = reduce<Largest>(most_near);

  float sum = 0, sum_near = 0;
  for (int64_t c = threadIdx.x; c < n; c += kThreads) {
    sum += expf((row[c] - most) * tile.scale);
    if (mixed && window.has(c)) sum_near += expf((row[c] - most_near) * tile.scale);
  }
  const float part = 1.0f / reduce<Sum>(sum);
  const float part_near = mixed ? 1.0f / reduce<Sum>(sum_near) : 0.0f;

  for (int64_t c = threadIdx.x; c < tile.end; c += kThreads) {
    float weight = c < n ? expf((row[c] - most) * tile.scale) * part : 0.0f;
    if (mixed && c < n) {
      weight *= alpha;
      if (window.has(c))
        weight += (1.0f - alpha) * (expf((row[c] - most_near) * tile.scale) * part_near);
    }
    row[c] = weight;
  }
}

// The same on the way back: logits into weights, and the gradients by these into those by logits.
// Without gates: effects of each row by blocks of columns; with: the gradient by alpha of each row.
template <bool kGated>
__global__ void __launch_bounds__(kThreads)
    softmax_backward_kernel(LogitTile tile, RowFindings found) {
  wait_for_previous();
  const int64_t n = tile.first_row + blockIdx.x + 1;
  const int64_t at = blockIdx.y * tile.head_stride + blockIdx.x * tile.stride;
  float* row = tile.logits + at;
  float* d_row = tile.d_logits + at;
  const float alpha = kGated ? tile.alpha[blockIdx.y / tile.group] : 1.0f;
  const Window window(tile, n);

  float most = kLowest, most_near = kLowest;
  for (int64_t c = threadIdx.x; c < n; c += kThreads) {
    most = fmaxf(most, row[c]);
    if (kGated && window.has(c)) most_near = fmaxf(most_near, row[c]);
  }
  most = reduce<Largest>(most);
  if constexpr (kGated) most_near = reduce<Largest>(most_near);

  float sum = 0, dot = 0, sum_near = 0, dot_near = 0;
  for (int64_t c = threadIdx.x; c < n; c += kThreads) {
    const float e = expf((row[c] - most) * tile.scale);
    sum += e;
    dot = fmaf(e, d_row[c], dot);
    if (kGated && window.has(c)) {
      const float near = expf((row[c] - most_near) * tile.scale);
      sum_near += near;
      dot_near = fmaf(near, d_row[c], dot_near);
    }
  }
  const float part = 1.0f / reduce<Sum>(sum);
  const float mean = reduce<Sum>(dot) * part;
  float part_near = 0, mean_near = 0;
  if constexpr (kGated) {
    part_near = 1.0f / reduce<Sum>(sum_near);
    mean_near = reduce<Sum>(dot_near) * part_near;
    if (threadIdx.x == 0) found.d_alpha[blockIdx.y * found.num_rows + n - 1] = mean - mean_near;
  }

  const int lane = threadIdx.x % 32;
  float* of_row = nullptr;
  if (found.effects != nullptr)
    of_row = found.effects + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * found.num_blocks;
  for (int64_t block = threadIdx.x / 32; block * kBlock < tile.end; block += kWarps) {
    float effect = 0;
    for (int64_t c = block * kBlock + lane; c < min((block + 1) * kBlock, tile.end); c += 32) {
      float weight = 0, d_logit = 0;
      if (c < n) {
        const float full = expf((row[c] - most) * tile.scale) * part;
        const float change = full * (d_row[c] - mean);
        effect += fabsf(change / (1.0f + kEffectEps - full));
        weight = alpha * full;
        d_logit = alpha * tile.scale * change;
        if (kGated && window.has(c)) {
          const float near = expf((row[c] - most_near) * tile.scale) * part_near;
          weight += (1.0f - alpha) * near;
          d_logit += (1.0f - alpha) * tile.scale * near * (d_row[c] - mean_near);
        }
      }
      row[c] = weight;
      d_row[c] = d_logit;
    }
    if (of_row == nullptr) continue;
    for (int offset = 16; offset > 0; offset /= 2) effect += __shfl_xor_sync(~0u, effect, offset);
    if (lane == 0) of_row[block] = effect;
  }
}

// Block (block of rows, head): effects[head, its block, ...] += the sums over its rows.
__global__ void __launch_bounds__(kThreads) add_effects_kernel(const float* of_rows,
                                                               int64_t tile_rows,
                                                               int64_t first_tile_row,
                                                               int64_t first_effect_row,
                                                               double* effects,
                                                               int32_t num_blocks) {
  wait_for_previous();
  const int64_t first = int64_t{blockIdx.x} * kBlock;  // of the tile
  const int64_t row_block = first_tile_row / kBlock + blockIdx.x;
  for (int64_t block = threadIdx.x; block <= row_block; block += kThreads) {
    double sum = 0;
    for (int64_t r = first; r < min(first + kBlock, tile_rows); ++r)
      if (first_tile_row + r >= first_effect_row)
        sum += of_rows[(blockIdx.y * tile_rows + r) * num_blocks + block];
    effects[(blockIdx.y * num_blocks + row_block) * num_blocks + block] += sum;
  }
}

// Block: a KV head. d_alpha[kv head] += the sum over the rows of its query heads.
__global__ void __launch_bounds__(kThreads) add_alpha_kernel(
    const float* of_rows, int64_t num_rows, int64_t first_row, int32_t group, double* d_alpha) {
  __shared__ double partial[kThreads];
  wait_for_previous();
  double sum = 0;
  for (int64_t head = blockIdx.x * group; head < (blockIdx.x + 1) * group; ++head)
    for (int64_t row = first_row + threadIdx.x; row < num_rows; row += kThreads)
      sum += of_rows[head * num_rows + row];
  partial[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) d_alpha[blockIdx.x] += partial[0];
}

// Column c of a row of q columns belongs to this one of its KV head's columns.
__device__ int64_t kv_column(int64_t c, int32_t head_dim, int32_t group) {
  return c / head_dim / group * head_dim + c % head_dim;
}

// k and v of KV heads -> of query heads, [rows, q columns].
__global__ void spread_kernel(const float* qkv,
                              int64_t stride,
                              int64_t q_cols,
                              int64_t kv_cols,
                              int32_t head_dim,
                              int32_t group,
                              float* k,
                              float* v) {
  wait_for_previous();
  const int64_t c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= q_cols) return;
  const float* from = qkv + blockIdx.x * stride + q_cols + kv_column(c, head_dim, group);
  k[blockIdx.x * q_cols + c] = from[0];
  v[blockIdx.x * q_cols + c] = from[kv_cols];
}

// The way back: sums over the query heads of a KV head.
__global__ void gather_kernel(const float* d_k,
                              const float* d_v,
                              int64_t q_cols,
                              int64_t kv_cols,
                              int32_t head_dim,
                              int32_t group,
                              float* d_qkv,
                              int64_t stride) {
  wait_for_previous();
  const int64_t c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= kv_cols) return;
  const int64_t first = blockIdx.x * q_cols + c / head_dim * group * head_dim + c % head_dim;
  float sum_k = 0, sum_v = 0;
  for (int32_t head = 0; head < group; ++head) {
    sum_k += d_k[first + int64_t{head} * head_dim];
    sum_v += d_v[first + int64_t{head} * head_dim];
  }
  float* to = d_qkv + blockIdx.x * stride + q_cols + c;
  to[0] = sum_k;
  to[kv_cols] = sum_v;
}

dim3 grid_of(int64_t rows, int64_t cols) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>((cols + kThreads - 1) / kThreads)};
}

dim3 rows_of_heads(const LogitTile& tile, int64_t rows) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>(tile.num_heads)};
}

}  // namespace

void softmax_rows(const LogitTile& tile, const Stream& stream) {
  launch(stream,
         tile.alpha != nullptr ? softmax_kernel<true> : softmax_kernel<false>,
         rows_of_heads(tile, tile.rows()),
         kThreads,
         0,
         tile);
}

void softmax_rows_backward(const LogitTile& tile, const RowFindings& found, const Stream& stream) {
  launch(stream,
         tile.alpha != nullptr ? softmax_backward_kernel<true> : softmax_backward_kernel<false>,
         rows_of_heads(tile, tile.rows()),
         kThreads,
         0,
         tile,
         found);
}

void add_effects(const LogitTile& tile,
                 const RowFindings& found,
                 int64_t first_effect_row,
                 double* effects,
                 const Stream& stream) {
  launch(stream,
         add_effects_kernel,
         rows_of_heads(tile, (tile.rows() + kBlock - 1) / kBlock),
         kThreads,
         0,
         found.effects,
         tile.rows(),
         tile.first_row,
         first_effect_row,
         effects,
         found.num_blocks);
}

void add_alpha(const RowFindings& found,
               int64_t first_row,
               int32_t num_kv_heads,
               int32_t group,
               double* d_alpha,
               const Stream& stream) {
  launch(stream,
         add_alpha_kernel,
         dim3(static_cast<unsigned>(num_kv_heads)),
         kThreads,
         0,
         found.d_alpha,
         found.num_rows,
         first_row,
         group,
         d_alpha);
}

void spread_heads(Matrix qkv, const HeadShape& heads, Matrix k, Matrix v, const Stream& stream) {
  launch(stream,
         spread_kernel,
         grid_of(qkv.rows, k.cols),
         kThreads,
         0,
         qkv.f32_row(0),
         qkv.stride,
         k.cols,
         int64_t{heads.num_kv_heads} * heads.head_dim,
         heads.head_dim,
         heads.num_heads / heads.num_kv_heads,
         k.f32_row(0),
         v.f32_row(0));
}

void gather_heads(
    Matrix d_k, Matrix d_v, const HeadShape& heads, Matrix d_qkv, const Stream& stream) {
  const int64_t kv_cols = int64_t{heads.num_kv_heads} * heads.head_dim;
  launch(stream,
         gather_kernel,
         grid_of(d_qkv.rows, kv_cols),
         kThreads,
         0,
         d_k.f32_row(0),
         d_v.f32_row(0),
         d_k.cols,
         kv_cols,
         heads.head_dim,
         heads.num_heads / heads.num_kv_heads,
         d_qkv.f32_row(0),
         d_qkv.stride);
}

}  // namespace headwater::cuda
