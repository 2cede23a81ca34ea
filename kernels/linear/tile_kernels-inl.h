// Per-target header: one tile of weights times a few rows of activations, per format.
// A block format is a struct with
//   Block        the weights of one packed block of 32 inputs, unpacked into registers
//   kBytes       of a packed super-block, kBlocks blocks of 32 inputs in it
//   load(p, b)   block b of the super-block at p
//   kParts       parts of a block with a scale of their own
//   add(w, x, dots, acc)  acc + the block's contribution for one activation row, from its dots
#if defined(HEADWATER_TILE_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWATER_TILE_KERNELS_INL_H_
#undef HEADWATER_TILE_KERNELS_INL_H_
#else
#define HEADWATER_TILE_KERNELS_INL_H_
#endif

#include <algorithm>

#include "kernels/base/lanes16-inl.h"
#include "kernels/linear/linear_cpu.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

using cpu::ActivationBlock;
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
    block.minus_32_sum[0] = -32 * sums[0];
    block.minus_32_sum[1] = -32 * sums[1];
  }
}

// ---- block formats (pack_cpu.cpp has the layouts)
constexpr int kRun = 64;

// Inputs 8g .. 8g + 7 of a block, as pairs.
struct Quad {
  I32x16 pair[4];
};

// Group kGroup of the 32 inputs whose quants lie at p.
template <int kBits, int kGroup>
HWY_INLINE Quad load_quad(const uint8_t* p) {
  Quad r;
  if constexpr (kBits == 8) {
    const I32x16 first = load_i32(p + kRun * 2 * kGroup);
    const I32x16 second = load_i32(p + kRun * (2 * kGroup + 1));
    r.pair[0] = shift_and<0, 0x00FF00FF>(first);
    r.pair[1] = shift_and<8, 0x00FF00FF>(first);
    r.pair[2] = shift_and<0, 0x00FF00FF>(second);
    r.pair[3] = shift_and<8, 0x00FF00FF>(second);
  } else {
    const I32x16 run = load_i32(p + kRun * kGroup);
    r.pair[0] = shift_and<0, 0x000F000F>(run);
    r.pair[1] = shift_and<4, 0x000F000F>(run);
    r.pair[2] = shift_and<8, 0x000F000F>(run);
    r.pair[3] = shift_and<12, 0x000F000F>(run);
  }
  if constexpr (kBits == 6) {
    constexpr int kField = kGroup % 2 * 8;  // where the high bits of the first pair begin
    const I32x16 run = load_i32(p + kRun * (4 + kGroup / 2));
    r.pair[0] = r.pair[0] | shift_and<kField - 4, 0x00300030>(run);
    r.pair[1] = r.pair[1] | shift_and<kField - 2, 0x00300030>(run);
    r.pair[2] = r.pair[2] | shift_and<kField, 0x00300030>(run);
    r.pair[3] = r.pair[3] | shift_and<kField + 2, 0x00300030>(run);
  }
  return r;
}

struct TileQ8_0 {
  static constexpr int kBits = 8;
  static constexpr int kBytes = 32 + 8 * kRun;
  static constexpr int kBlocks = 1;
  static constexpr int kParts = 1;
  struct Block {
    const uint8_t* quants;
    F32x16 d;
  };
  static HWY_INLINE Block load(const uint8_t* p, int) {
    return {p + 32, load_f16(reinterpret_cast<const uint16_t*>(p))};
  }
  static HWY_INLINE F32x16 add(const Block& w,
                               const ActivationBlock& x,
                               const I32x16* dots,
                               const F32x16& acc) {
    const I32x16 sum = dots[0] + splat_i32(x.minus_128_sum);
    return fma(w.d * splat(x.d), to_f32(sum), acc);
  }
};

struct TileQ4_0 {
  static constexpr int kBits = 4;
  static constexpr int kBytes = 32 + 4 * kRun;
  static constexpr int kBlocks = 1;
  static constexpr int kParts = 1;
  struct Block {
    const uint8_t* quants;
    F32x16 d;
  };
  static HWY_INLINE Block load(const uint8_t* p, int) {
    return {p + 32, load_f16(reinterpret_cast<const uint16_t*>(p))};
  }
  static HWY_INLINE F32x16 add(const Block& w,
                               const ActivationBlock& x,
                               const I32x16* dots,
                               const F32x16& acc) {
    const I32x16 sum = dots[0] + splat_i32(x.minus_8_sum);
    return fma(w.d * splat(x.d), to_f32(sum), acc);
  }
};

struct ScaledAndOffset {
  const uint8_t* quants;
  F32x16 d, m;  // value = d * w + m
};
HWY_INLINE F32x16 add_scaled_and_offset(const ScaledAndOffset& w,
                                        const ActivationBlock& x,
                                        const I32x16& dot,
                                        const F32x16& acc) {
  return fma(w.d * splat(x.d), to_f32(dot), fma(w.m, splat(x.d_sum), acc));
}

struct TileQ4_1 {
  static constexpr int kBits = 4;
  static constexpr int kBytes = 64 + 4 * kRun;
  static constexpr int kBlocks = 1;
  static constexpr int kParts = 1;
  using Block = ScaledAndOffset;
  static HWY_INLINE Block load(const uint8_t* p, int) {
    const auto* scales = reinterpret_cast<const uint16_t*>(p);
    return {p + 64, load_f16(scales), load_f16(scales + 16)};
  }
  static HWY_INLINE F32x16 add(const Block& w,
                               const ActivationBlock& x,
                               const I32x16* dots,
                               const F32x16& acc) {
    return add_scaled_and_offset(w, x, dots[0], acc);
  }
};

struct TileQ4_K {
  static constexpr int kBits = 4;
  static constexpr int kBlocks = 8;
  static constexpr int kParts = 1;
  static constexpr int kSubBytes = 32 + 4 * kRun;
  static constexpr int kBytes = 64 + kBlocks * kSubBytes;
  using Block = ScaledAndOffset;
  static HWY_INLINE Block load(const uint8_t* p, int b) {
    const auto* scales = reinterpret_cast<const uint16_t*>(p);
    const uint8_t* sub = p + 64 + b * kSubBytes;
    return {sub + 32,
            load_f16(scales) * to_f32(load_bytes(sub)),
            splat(0.0f) - load_f16(scales + 16) * to_f32(load_bytes(sub + 16))};
  }
  static HWY_INLINE F32x16 add(const Block& w,
                               const ActivationBlock& x,
                               const I32x16* dots,
                               const F32x16& acc) {
    return add_scaled_and_offset(w, x, dots[0], acc);
  }
};

struct TileQ6_K {
  static constexpr int kBits = 6;
  static constexpr int kBlocks = 8;
  static constexpr int kParts = 2;
  static constexpr int kSubBytes = 32 + 6 * kRun;
  static constexpr int kBytes = 32 + kBlocks * kSubBytes;
  struct Block {
    const uint8_t* quants;
    F32x16 d;
    I32x16 scale[2];  // of each half of the 32 inputs
  };
  static HWY_INLINE Block load(const uint8_t* p, int b) {
    const uint8_t* sub = p + 32 + b * kSubBytes;
    const auto* scales = reinterpret_cast<const int8_t*>(sub);
    return {sub + 32,
            load_f16(reinterpret_cast<const uint16_t*>(p)),
            {load_bytes(scales), load_bytes(scales + 16)}};
  }
  static HWY_INLINE F32x16 add(const Block& w,
                               const ActivationBlock& x,
                               const I32x16* dots,
                               const F32x16& acc) {
    const I32x16 first = dots[0] + splat_i32(x.minus_32_sum[0]);
    const I32x16 second = dots[1] + splat_i32(x.minus_32_sum[1]);
    return fma(w.d * splat(x.d), to_f32(first * w.scale[0] + second * w.scale[1]), acc);
  }
};

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
  const Quad quad = load_quad<Format::kBits, kGroup>(w.quants);
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
  }
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#endif  // per-target guard
