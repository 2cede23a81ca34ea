#include "kernels/gradient/attention_cuda.cuh"

#include <algorithm>

#include "kernels/gradient/attention_rows_cuda.cuh"

namespace headwater::cuda {
namespace {

using Layout = Factor::Layout;

constexpr int64_t kBlock = kEffectBlockTokens;
constexpr int64_t kTileBytes = int64_t{256} << 20;  // of logits, and as much of their gradients
constexpr int64_t kFloatBytes = sizeof(float);

float* room(Buffer& buffer, int64_t elements, const Stream& stream) {
  if (buffer.bytes() < elements * kFloatBytes) {
    buffer = {};  // cudaFree waits for who still reads it
    buffer = allocate_device(elements * kFloatBytes, stream);
  }
  return buffer.as<float>();
}

Factor transposed(Factor factor) {
  factor.layout = Layout::kTransposed;
  return factor;
}

void clear(Matrix x, const Stream& stream) {
  HW_CUDA(cudaMemsetAsync(
      x.data, 0, static_cast<size_t>(x.rows * x.stride * kFloatBytes), stream.get()));
}

// One layer's attention, tile by tile. A product is one call, the query heads are its batch.
class Attention {
 public:
  Attention(const GradientAttention& args,
            GradientScratch& scratch,
            const Cublas& cublas,
            const Stream& stream)
      : args_(args),
        scratch_(scratch),
        cublas_(cublas),
        stream_(stream),
        rows_(args.qkv.rows),
        dim_(args.heads.head_dim),
        num_heads_(args.heads.num_heads),
        q_cols_(num_heads_ * dim_),
        key_stride_((rows_ + kBlock - 1) / kBlock * kBlock),
        first_row_(args.first_row / kBlock * kBlock) {
    const int64_t block_bytes = num_heads_ * key_stride_ * kBlock * kFloatBytes;
    tile_rows_ = std::min(std::max<int64_t>(1, kTileBytes / block_bytes) * kBlock, key_stride_);
    room(scratch.logits, num_heads_ * tile_rows_ * key_stride_, stream);
    k_ = matrix(scratch.k);
    v_ = matrix(scratch.v);
    spread_heads(args.qkv, args.heads, k_, v_, stream);
  }

  void forward(Matrix out) {
    for_tiles([&](const LogitTile& tile) {
      logits_of(q_of(tile), k_, tile, tile.logits);
      softmax_rows(tile, stream_);
      multiply(weights(tile, tile.logits), of_heads(v_), tile.end, rows_of(out, tile), false);
    });
  }

  void backward(Matrix d_out, Matrix d_qkv, const AttentionFindings& findings) {
    room(scratch_.d_logits, num_heads_ * tile_rows_ * key_stride_, stream_);
    const Matrix d_k = matrix(scratch_.d_k), d_v = matrix(scratch_.d_v);
    for (const Matrix& sums : {d_k, d_v, d_qkv}) clear(sums, stream_);
    RowFindings found;
    found.num_rows = rows_;
    found.num_blocks = findings.num_blocks;
    if (args_.alpha != nullptr) found.d_alpha = room(scratch_.d_alpha, num_heads_ * rows_, stream_);
    if (findings.effects != nullptr)
      found.effects =
          room(scratch_.effects, num_heads_ * tile_rows_ * findings.num_blocks, stream_);
    for_tiles([&](const LogitTile& tile) {
      const Factor q = q_of(tile), d_rows = of_heads(rows_of(d_out, tile));
      logits_of(q, k_, tile, tile.logits);
      logits_of(d_rows, v_, tile, tile.d_logits);
      softmax_rows_backward(tile, found, stream_);
      if (findings.effects != nullptr)
        add_effects(tile, found, findings.first_effect_row, findings.effects, stream_);
      const Factor p = weights(tile, tile.logits), d_logits = weights(tile, tile.d_logits);
      multiply(d_logits, of_heads(k_), tile.end, rows_of(d_qkv, tile), false);
      multiply(transposed(d_logits), q, tile.rows(), d_k.first_rows(tile.end), true);
      multiply(transposed(p), d_rows, tile.rows(), d_v.first_rows(tile.end), true);
    });
    gather_heads(d_k, d_v, args_.heads, d_qkv, stream_);
    if (findings.d_alpha != nullptr)
      add_alpha(found,
                first_row_,
                args_.heads.num_kv_heads,
                args_.heads.num_heads / args_.heads.num_kv_heads,
                findings.d_alpha,
                stream_);
  }

 private:
  template <typename Body>
  void for_tiles(const Body& body) {
    LogitTile tile;
    tile.logits = scratch_.logits.as<float>();
    tile.d_logits = scratch_.d_logits.as<float>();
    tile.stride = key_stride_;
    tile.head_stride = tile_rows_ * key_stride_;
    tile.num_heads = args_.heads.num_heads;
    tile.group = args_.heads.num_heads / args_.heads.num_kv_heads;
    tile.scale = args_.scale;
    tile.alpha = args_.alpha;
    tile.sinks = args_.sinks;
    tile.recent = args_.recent;
    for (int64_t row = first_row_; row < rows_; row += tile_rows_) {
      tile.first_row = row;
      tile.end = std::min(row + tile_rows_, rows_);
      body(tile);
    }
  }

  Matrix matrix(Buffer& buffer) const {  // [rows, q columns]
    return {room(buffer, rows_ * q_cols_, stream_), DType::kF32, rows_, q_cols_, q_cols_};
  }
  static Matrix rows_of(Matrix x, const LogitTile& tile) {
    return x.row_range(tile.first_row, tile.rows());
  }

  // A head's columns lie dim_ behind those of the head before it.
  Factor of_heads(Matrix x) const { return {x.f32_row(0), x.stride, Layout::kRows, dim_}; }
  Factor q_of(const LogitTile& tile) const { return of_heads(rows_of(args_.qkv, tile)); }
  static Factor weights(const LogitTile& tile, const float* logits) {
    return {logits, tile.stride, Layout::kRows, tile.head_stride};
  }
  // logits = rows * keys^T of each head
  void logits_of(const Factor& rows, Matrix keys, const LogitTile& tile, float* logits) {
    cublas_.multiply_batch(rows,
                           transposed(of_heads(keys)),
                           dim_,
                           {logits, DType::kF32, tile.rows(), tile.end, tile.stride},
                           tile.head_stride,
                           num_heads_,
                           false,
                           Arithmetic::kFp32);
  }
  // out's columns of each head (+)= a * b
  void multiply(const Factor& a, const Factor& b, int64_t depth, Matrix out, bool add) {
    cublas_.multiply_batch(
        a, b, depth, out.columns(0, dim_), dim_, num_heads_, add, Arithmetic::kFp32);
  }

  const GradientAttention& args_;  // these four are not owned
  GradientScratch& scratch_;
  const Cublas& cublas_;
  const Stream& stream_;
  int64_t rows_, dim_, num_heads_, q_cols_, key_stride_, first_row_;
  int64_t tile_rows_ = 0;
  Matrix k_, v_;
};

}  // namespace

void gradient_attention(const GradientAttention& args,
                        Matrix out,
                        GradientScratch& scratch,
                        const Cublas& cublas,
                        const Stream& stream) {
  Attention(args, scratch, cublas, stream).forward(out);
}

void gradient_attention_backward(const GradientAttention& args,
                                 Matrix d_out,
                                 Matrix d_qkv,
                                 const AttentionFindings& findings,
                                 GradientScratch& scratch,
                                 const Cublas& cublas,
                                 const Stream& stream) {
  Attention(args, scratch, cublas, stream).backward(d_out, d_qkv, findings);
}

}  // namespace headwater::cuda
