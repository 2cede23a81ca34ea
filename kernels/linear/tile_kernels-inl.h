// Per-target header: one tile of weights times a few rows of activations, per format.
// A block format is a struct with
//   Block        the weights of one packed block of 32 inputs, unpacked into registers
//   kBytes       of a packed super-block, kBlocks blocks of 32 inputs in it
//   load(p, b)   block b of the super-block at p
//   add(w, x, acc)  acc + the block's contribution for one activation row
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
  for (int64_t b = 0; b < num_blocks; ++b, x += kBlock) {
    ActivationBlock& block = out[b];
    const F32x16 low = load(x);
    const F32x16 high = load(x + 16);
    const F32x16 zero = splat(0.0f);
    const float largest = max_lanes(max(max(low, zero - low), max(high, zero - high)));
    const F32x16 inverse = splat(largest > 0 ? 127.0f / largest : 0.0f);
    alignas(64) int32_t q[kBlock];
    const F32x16 scaled_low = low * inverse;
    const F32x16 scaled_high = high * inverse;
    HW_FOR_REGS {
      hn::StoreU(hn::NearestInt(scaled_low.v[i]), kDi, q + i * kLanes);
      hn::StoreU(hn::NearestInt(scaled_high.v[i]), kDi, q + 16 + i * kLanes);
    }
    int32_t sums[2] = {};
    for (int k = 0; k < kBlock; ++k) {
      block.q[k] = static_cast<int8_t>(q[k]);
      sums[k / 16] += q[k];
    }
    const int32_t sum = sums[0] + sums[1];
    block.d = largest / 127.0f;
    block.d_sum = block.d * static_cast<float>(sum);
    block.minus_128_sum = -128 * sum;
    block.minus_8_sum = -8 * sum;
    block.minus_32_sum[0] = -32 * sums[0];
    block.minus_32_sum[1] = -32 * sums[1];
  }
}

// ---- block formats
constexpr int kRun = 64;

struct Runs {
  U8x64 run[8];  // input 4n + j of lane r in byte 4r + j of run n
};

HWY_INLINE Runs load_4_bits(const uint8_t* p) {
  Runs r;
#pragma GCC unroll 4
  for (int n = 0; n < 4; ++n) {
    const U8x64 both = load_u8(p + kRun * n);
    r.run[n] = shift_right_and<0, 15>(both);
    r.run[n + 4] = shift_right_and<4, 15>(both);
  }
  return r;
}

template <bool kEightBits, int kBegin, int kEnd>
HWY_INLINE I32x16 dot_runs(I32x16 sum, const Runs& w, const int8_t* q) {
#pragma GCC unroll 8
  for (int n = kBegin; n < kEnd; ++n) sum = dot4<kEightBits>(sum, w.run[n], q + 4 * n);
  return sum;
}

struct TileQ8_0 {
  static constexpr int kBytes = 32 + 8 * kRun;
  static constexpr int kBlocks = 1;
  struct Block {
    Runs w;
    F32x16 d;
  };
  static HWY_INLINE Block load(const uint8_t* p, int) {
    Block r;
    r.d = load_f16(reinterpret_cast<const uint16_t*>(p));
#pragma GCC unroll 8
    for (int n = 0; n < 8; ++n) r.w.run[n] = load_u8(p + 32 + kRun * n);
    return r;
  }
  static HWY_INLINE F32x16 add(const Block& w, const ActivationBlock& x, const F32x16& acc) {
    const I32x16 start = splat_i32(kDotCentres ? 0 : x.minus_128_sum);
    return fma(w.d * splat(x.d), to_f32(dot_runs<true, 0, 8>(start, w.w, x.q)), acc);
  }
};

struct TileQ4_0 {
  static constexpr int kBytes = 32 + 4 * kRun;
  static constexpr int kBlocks = 1;
  struct Block {
    Runs w;
    F32x16 d;
  };
  static HWY_INLINE Block load(const uint8_t* p, int) {
    return {load_4_bits(p + 32), load_f16(reinterpret_cast<const uint16_t*>(p))};
  }
  static HWY_INLINE F32x16 add(const Block& w, const ActivationBlock& x, const F32x16& acc) {
    const I32x16 sum = dot_runs<false, 0, 8>(splat_i32(x.minus_8_sum), w.w, x.q);
    return fma(w.d * splat(x.d), to_f32(sum), acc);
  }
};

struct ScaledAndOffset {
  Runs w;
  F32x16 d, m;  // value = d * w + m
};
HWY_INLINE F32x16 add_scaled_and_offset(const ScaledAndOffset& w,
                                        const ActivationBlock& x,
                                        const F32x16& acc) {
  const I32x16 sum = dot_runs<false, 0, 8>(splat_i32(0), w.w, x.q);
  return fma(w.d * splat(x.d), to_f32(sum), fma(w.m, splat(x.d_sum), acc));
}

struct TileQ4_1 {
  static constexpr int kBytes = 64 + 4 * kRun;
  static constexpr int kBlocks = 1;
  using Block = ScaledAndOffset;
  static HWY_INLINE Block load(const uint8_t* p, int) {
    const auto* scales = reinterpret_cast<const uint16_t*>(p);
    return {load_4_bits(p + 64), load_f16(scales), load_f16(scales + 16)};
  }
  static HWY_INLINE F32x16 add(const Block& w, const ActivationBlock& x, const F32x16& acc) {
    return add_scaled_and_offset(w, x, acc);
  }
};

struct TileQ4_K {
  static constexpr int kBlocks = 8;
  static constexpr int kSubBytes = 32 + 4 * kRun;
  static constexpr int kBytes = 64 + kBlocks * kSubBytes;
  using Block = ScaledAndOffset;
  static HWY_INLINE Block load(const uint8_t* p, int b) {
    const auto* scales = reinterpret_cast<const uint16_t*>(p);
    const uint8_t* sub = p + 64 + b * kSubBytes;
    return {load_4_bits(sub + 32),
            load_f16(scales) * to_f32(load_bytes(sub)),
            splat(0.0f) - load_f16(scales + 16) * to_f32(load_bytes(sub + 16))};
  }
  static HWY_INLINE F32x16 add(const Block& w, const ActivationBlock& x, const F32x16& acc) {
    return add_scaled_and_offset(w, x, acc);
  }
};

struct TileQ6_K {
  static constexpr int kBlocks = 8;
  static constexpr int kSubBytes = 32 + 6 * kRun;
  static constexpr int kBytes = 32 + kBlocks * kSubBytes;
  struct Block {
    Runs w;
    F32x16 d;
    I32x16 scale[2];  // of each half of the 32 inputs
  };
  static HWY_INLINE Block load(const uint8_t* p, int b) {
    const uint8_t* sub = p + 32 + b * kSubBytes;
    const auto* scales = reinterpret_cast<const int8_t*>(sub);
    Block r{load_4_bits(sub + 32),
            load_f16(reinterpret_cast<const uint16_t*>(p)),
            {load_bytes(scales), load_bytes(scales + 16)}};
#pragma GCC unroll 2
    for (int n = 0; n < 2; ++n) {
      const U8x64 high = load_u8(sub + 32 + kRun * (4 + n));
      r.w.run[4 * n] = r.w.run[4 * n] | shift_left_and<4, 48>(high);
      r.w.run[4 * n + 1] = r.w.run[4 * n + 1] | shift_left_and<2, 48>(high);
      r.w.run[4 * n + 2] = r.w.run[4 * n + 2] | shift_right_and<0, 48>(high);
      r.w.run[4 * n + 3] = r.w.run[4 * n + 3] | shift_right_and<2, 48>(high);
    }
    return r;
  }
  // Both halves fit 24 bits together: the conversion to float is exact.
  static HWY_INLINE F32x16 add(const Block& w, const ActivationBlock& x, const F32x16& acc) {
    const I32x16 first = dot_runs<false, 0, 4>(splat_i32(x.minus_32_sum[0]), w.w, x.q);
    const I32x16 second = dot_runs<false, 4, 8>(splat_i32(x.minus_32_sum[1]), w.w, x.q);
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
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
        sums[r] = Format::add(w, x[r * num_blocks + first + b], sums[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) acc[r] = sums[r];
}

// Calls body.template operator()<n>(first row) for runs of 8, 4, 2 and 1 rows.
template <typename Body>
HWY_INLINE void for_row_runs(int64_t row, int64_t end, const Body& body) {
  for (; row + 8 <= end; row += 8) body(row, std::integral_constant<int, 8>());
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
  constexpr int kTiles = 2;
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
