// Per-target header: one tile of weights times a few rows of activations, per format.
#if defined(HEADWATER_TILE_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWATER_TILE_KERNELS_INL_H_
#undef HEADWATER_TILE_KERNELS_INL_H_
#else
#define HEADWATER_TILE_KERNELS_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "kernels/base/lanes16-inl.h"
#include "kernels/linear/linear_cpu.h"
#include "kernels/linear/tile_formats-inl.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

using cpu::kBlock;
using cpu::kTileRows;

// ---- activations
inline void quantize_row(const float* x, int64_t num_blocks, ActivationBlock* out) {
  constexpr float kLargest = 8191.0f;
  for (int64_t b = 0; b < num_blocks; ++b, x += kBlock) {
    ActivationBlock& block = out[b];
    const F32x16 halves[2] = {load(x), load(x + 16)};
    const F32x16 zero = splat(0.0f);
    const float largest =
        max_lanes(max(max(halves[0], zero - halves[0]), max(halves[1], zero - halves[1])));
    const F32x16 inverse = splat(largest > 0 ? kLargest / largest : 0.0f);
    int32_t sums[2];
    for (int half = 0; half < 2; ++half) {
      // NaN and infinity give any integers, but such that fit.
      const F32x16 scaled = halves[half] * inverse;
      const I32x16 q = nearest_int(min(max(scaled, splat(-kLargest)), splat(kLargest)));
      store_i16(q, block.q + 16 * half);
      sums[half] = sum_lanes(q);
    }
    const int32_t sum = sums[0] + sums[1];
    block.d = largest / kLargest;
    block.d_sum = block.d * static_cast<float>(sum);
    block.minus_128_sum = -128 * sum;
    block.minus_8_sum = -8 * sum;
    for (int half = 0; half < 2; ++half) {
      block.minus_32_sum[half] = -32 * sums[half];
      block.minus_4_sum[half] = -4 * sums[half];
    }
  }
}

// ---- scalar formats: fp32 activations
struct ElementsF32 {
  using Element = float;
  static HWY_INLINE F32x16 load16(const float* p) { return load(p); }
};
struct ElementsF16 {
  using Element = uint16_t;
  static HWY_INLINE F32x16 load16(const uint16_t* p) { return load_f16(p); }
};
struct ElementsBF16 {
  using Element = uint16_t;
  static HWY_INLINE F32x16 load16(const uint16_t* p) { return load_bf16(p); }
};

// ---- loops over rows and tiles
HWY_INLINE void store_tile(
    const cpu::PackedPart& part, int64_t tile, const F32x16& acc, float* row, LinearMode mode) {
  float* out = row + part.first_col + tile * kTileRows;
  const int64_t lanes = std::min<int64_t>(kTileRows, part.source.rows - tile * kTileRows);
  if (lanes == kTileRows) {
    store(mode == LinearMode::kAdd ? load(out) + acc : acc, out);
  } else {
    float values[kTileRows];
    store(acc, values);
    for (int64_t i = 0; i < lanes; ++i)
      out[i] = mode == LinearMode::kAdd ? out[i] + values[i] : values[i];
  }
}

template <typename Format, int kGroup, int kRows>
HWY_INLINE void dot_quad(const typename Format::Block& w,
                         const ActivationBlock* x,
                         int64_t stride,
                         I32x16 (*dots)[Format::kParts]) {
  constexpr int kPart = kGroup * Format::kParts / 4;
  const Quad quad = Format::Quants::template load<kGroup>(w.quants);
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      dots[r][kPart] =
          dot_pairs(dots[r][kPart], quad.pair[p], x[r * stride].q + 8 * kGroup + 2 * p);
}

template <typename Format, int kRows>
HWY_INLINE void block_rows(const uint8_t* tile,
                           int64_t num_blocks,
                           const ActivationBlock* x,
                           F32x16* acc) {
  F32x16 sums[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r] = splat(0.0f);
  for (int64_t first = 0; first < num_blocks; first += Format::kBlocks, tile += Format::kBytes) {
    for (int b = 0; b < Format::kBlocks; ++b) {
      const typename Format::Block w = Format::load(tile, b);
      const ActivationBlock* blocks = x + first + b;
      I32x16 dots[kRows][Format::kParts];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        for (I32x16& dot : dots[r]) dot = splat_i32(0);
      dot_quad<Format, 0, kRows>(w, blocks, num_blocks, dots);
      dot_quad<Format, 1, kRows>(w, blocks, num_blocks, dots);
      dot_quad<Format, 2, kRows>(w, blocks, num_blocks, dots);
      dot_quad<Format, 3, kRows>(w, blocks, num_blocks, dots);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        sums[r] = Format::add(w, blocks[r * num_blocks], dots[r], sums[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) acc[r] = sums[r];
}

// Calls body.template operator()<n>(first row) for runs of 8 (where their sums fit the registers),
// 4, 2 and 1 rows.
constexpr int kMaxRows = kRegs == 1 ? 8 : 4;

template <typename Body>
HWY_INLINE void for_row_runs(int64_t row, int64_t end, const Body& body) {
  for (; row + kMaxRows <= end; row += kMaxRows) body(row, std::integral_constant<int, kMaxRows>());
  if (row + 4 <= end) body(row, std::integral_constant<int, 4>()), row += 4;
  if (row + 2 <= end) body(row, std::integral_constant<int, 2>()), row += 2;
  if (row < end) body(row, std::integral_constant<int, 1>());
}

template <typename Format>
HWY_NOINLINE void run_block_tiles(const cpu::TileRange& range,
                                  const ActivationBlock* x,
                                  Matrix out,
                                  LinearMode mode) {
  const int64_t num_blocks = range.part->source.cols / kBlock;
  for (int64_t tile = range.first_tile; tile < range.end_tile; ++tile) {
    for_row_runs(range.first_row, range.end_row, [&](int64_t row, auto count) HWY_ATTR {
      F32x16 acc[count];
      block_rows<Format, count>(range.part->tile(tile), num_blocks, x + row * num_blocks, acc);
      for (int r = 0; r < count; ++r)
        store_tile(*range.part, tile, acc[r], out.f32_row(row + r), mode);
    });
  }
}

// kTiles tiles at once: each running sum is one chain of dependent additions.
template <typename Elements, int kRows, int kTiles>
HWY_INLINE void element_rows(
    const cpu::TileRange& range, int64_t tile, int64_t row, Matrix x, Matrix out, LinearMode mode) {
  using Element = typename Elements::Element;
  const int64_t cols = range.part->source.cols;
  const auto* w = reinterpret_cast<const Element*>(range.part->tile(tile));
  const float* in = x.f32_row(row);
  F32x16 acc[kTiles][kRows];
#pragma GCC unroll 8
  for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[t][r] = splat(0.0f);
  for (int64_t k = 0; k < cols; ++k) {
    F32x16 value[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) value[r] = splat(in[r * x.stride + k]);
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) {
      const F32x16 weights = Elements::load16(w + (t * cols + k) * kTileRows);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) acc[t][r] = fma(weights, value[r], acc[t][r]);
    }
  }
  for (int t = 0; t < kTiles; ++t)
    for (int r = 0; r < kRows; ++r)
      store_tile(*range.part, tile + t, acc[t][r], out.f32_row(row + r), mode);
}

template <typename Elements>
HWY_NOINLINE void run_element_tiles(const cpu::TileRange& range,
                                    Matrix x,
                                    Matrix out,
                                    LinearMode mode) {
  constexpr int kTiles = kRegs == 1 ? 2 : 1;
  int64_t tile = range.first_tile;
  if (range.end_row - range.first_row == 1) {
    for (; tile + 4 <= range.end_tile; tile += 4)
      element_rows<Elements, 1, 4>(range, tile, range.first_row, x, out, mode);
  }
  for (; tile + kTiles <= range.end_tile; tile += kTiles) {
    for_row_runs(range.first_row, range.end_row, [&](int64_t row, auto count) HWY_ATTR {
      element_rows<Elements, count, kTiles>(range, tile, row, x, out, mode);
    });
  }
  for (; tile < range.end_tile; ++tile) {
    for_row_runs(range.first_row, range.end_row, [&](int64_t row, auto count) HWY_ATTR {
      element_rows<Elements, count, 1>(range, tile, row, x, out, mode);
    });
  }
}

inline void run_tiles(const cpu::TileRange& range,
                      Matrix x,
                      const ActivationBlock* blocks,
                      Matrix out,
                      LinearMode mode) {
  switch (range.part->source.format) {
    case QuantFormat::kF32:
      return run_element_tiles<ElementsF32>(range, x, out, mode);
    case QuantFormat::kF16:
      return run_element_tiles<ElementsF16>(range, x, out, mode);
    case QuantFormat::kBF16:
      return run_element_tiles<ElementsBF16>(range, x, out, mode);
    case QuantFormat::kQ8_0:
      return run_block_tiles<TileQ8_0>(range, blocks, out, mode);
    case QuantFormat::kQ4_0:
      return run_block_tiles<TileQ4_0>(range, blocks, out, mode);
    case QuantFormat::kQ4_1:
      return run_block_tiles<TileQ4_1>(range, blocks, out, mode);
    case QuantFormat::kQ4_K:
      return run_block_tiles<TileQ4_K>(range, blocks, out, mode);
    case QuantFormat::kQ6_K:
      return run_block_tiles<TileQ6_K>(range, blocks, out, mode);
    case QuantFormat::kQ5_0:
      return run_block_tiles<TileQ5_0>(range, blocks, out, mode);
    case QuantFormat::kQ5_1:
      return run_block_tiles<TileQ5_1>(range, blocks, out, mode);
    case QuantFormat::kQ2_K:
      return run_block_tiles<TileQ2_K>(range, blocks, out, mode);
    case QuantFormat::kQ3_K:
      return run_block_tiles<TileQ3_K>(range, blocks, out, mode);
    case QuantFormat::kQ5_K:
      return run_block_tiles<TileQ5_K>(range, blocks, out, mode);
    case QuantFormat::kIQ4_NL:
      return run_block_tiles<TileIQ4_NL>(range, blocks, out, mode);
    case QuantFormat::kIQ4_XS:
      return run_block_tiles<TileIQ4_XS>(range, blocks, out, mode);
  }
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#endif  // per-target guard
