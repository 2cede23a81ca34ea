// Per-target header: how a packed block of each format becomes pairs, and its sum a number.
// A block format is a struct with
//   Block        the weights of one packed block of 32 inputs: where its quants lie, its scales
//   kBytes       of a packed super-block, kBlocks blocks of 32 inputs in it
//   load(p, b)   block b of the super-block at p
//   Quants       how its quants become pairs: Bits<n> or Nl4Bits
//   kParts       parts of a block with a scale of their own
//   add(w, x, dots, acc)  acc + the block's contribution for one activation row, from its dots
#if defined(HEADWATER_TILE_FORMATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWATER_TILE_FORMATS_INL_H_
#undef HEADWATER_TILE_FORMATS_INL_H_
#else
#define HEADWATER_TILE_FORMATS_INL_H_
#endif

#include <bit>

#include "kernels/base/lanes16-inl.h"
#include "kernels/linear/linear_cpu.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

using cpu::ActivationBlock;

// ---- quants to pairs (pack_cpu.cpp has the layouts)
constexpr int kRun = 64;

// Inputs 8g .. 8g + 7 of a block, as pairs.
struct Quad {
  I32x16 pair[4];
};

// Bits [kShift, kShift + kBits) of pair kPair, from the runs at p of these bits alone.
template <int kBits, int kShift, int kPair>
HWY_INLINE I32x16 load_pair(const uint8_t* p) {
  constexpr int kPairs = 16 / kBits;  // of a run
  constexpr int32_t kMask = ((1 << kBits) - 1) << kShift;
  const I32x16 run = load_i32(p + kRun * (kPair / kPairs));
  return shift_and<kPair % kPairs * kBits - kShift, kMask << 16 | kMask>(run);
}
template <int kBits, int kShift, int kGroup>
HWY_INLINE Quad load_plane(const uint8_t* p) {
  return {{load_pair<kBits, kShift, 4 * kGroup>(p),
           load_pair<kBits, kShift, 4 * kGroup + 1>(p),
           load_pair<kBits, kShift, 4 * kGroup + 2>(p),
           load_pair<kBits, kShift, 4 * kGroup + 3>(p)}};
}

// Group kGroup of the 32 inputs whose quants lie at p.
template <int kBits>
struct Bits {
  static constexpr int kBytes = kBits * kRun;
  template <int kGroup>
  static HWY_INLINE Quad load(const uint8_t* p) {
    constexpr int kLow = static_cast<int>(std::bit_floor(unsigned{kBits}));
    Quad r = load_plane<kLow, 0, kGroup>(p);
    if constexpr (kLow < kBits) {
      const Quad high = load_plane<kBits - kLow, kLow, kGroup>(p + kLow * kRun);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) r.pair[i] = r.pair[i] | high.pair[i];
    }
    return r;
  }
};

// Four bits that stand for kNl4Values, as value + 128.
struct Nl4Table {
  alignas(16) uint8_t values[16];
};
constexpr Nl4Table make_nl4_table() {
  Nl4Table table{};
  for (int i = 0; i < 16; ++i) table.values[i] = static_cast<uint8_t>(kNl4Values[i] + 128);
  return table;
}
inline constexpr Nl4Table kNl4Table = make_nl4_table();

struct Nl4Bits {
  static constexpr int kBytes = 4 * kRun;
  template <int kGroup>
  static HWY_INLINE Quad load(const uint8_t* p) {
    const I32x16 run = load_i32(p + kRun * kGroup);
    const I32x16 even = lookup_bytes(kNl4Table.values, shift_and<0, 0x0F0F0F0F>(run));
    const I32x16 odd = lookup_bytes(kNl4Table.values, shift_and<4, 0x0F0F0F0F>(run));
    return {{shift_and<0, 0x00FF00FF>(even),
             shift_and<0, 0x00FF00FF>(odd),
             shift_and<8, 0x00FF00FF>(even),
             shift_and<8, 0x00FF00FF>(odd)}};
  }
};

// ---- a scale per 32 inputs
struct Scaled {
  const uint8_t* quants;
  F32x16 d;
};
struct ScaledAndOffset {
  const uint8_t* quants;
  F32x16 d, m;  // value = d * w + m
};
HWY_INLINE F32x16 add_scaled(const Scaled& w,
                             const ActivationBlock& x,
                             const I32x16& dot,
                             const F32x16& acc) {
  return fma(w.d * splat(x.d), to_f32(dot), acc);
}
HWY_INLINE F32x16 add_scaled_and_offset(const ScaledAndOffset& w,
                                        const ActivationBlock& x,
                                        const I32x16& dot,
                                        const F32x16& acc) {
  return fma(w.d * splat(x.d), to_f32(dot), fma(w.m, splat(x.d_sum), acc));
}

// f16 d[r], quants of 32 inputs, each kCentre too large.
template <typename QuantBits, int kCentre>
struct TileScaled {
  using Quants = QuantBits;
  using Block = Scaled;
  static constexpr int kBytes = 32 + Quants::kBytes;
  static constexpr int kBlocks = 1;
  static constexpr int kParts = 1;
  static HWY_INLINE Block load(const uint8_t* p, int) {
    return {p + 32, load_f16(reinterpret_cast<const uint16_t*>(p))};
  }
  static HWY_INLINE F32x16 add(const Block& w,
                               const ActivationBlock& x,
                               const I32x16* dots,
                               const F32x16& acc) {
    static_assert(kCentre == 128 || kCentre == 16 || kCentre == 8);
    const int32_t excess = kCentre == 128 ? x.minus_128_sum : kCentre / 8 * x.minus_8_sum;
    return add_scaled(w, x, dots[0] + splat_i32(excess), acc);
  }
};

// f16 d[r], f16 m[r], quants of 32 inputs.
template <int kBits>
struct TileScaledAndOffset {
  using Quants = Bits<kBits>;
  using Block = ScaledAndOffset;
  static constexpr int kBytes = 64 + Quants::kBytes;
  static constexpr int kBlocks = 1;
  static constexpr int kParts = 1;
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

using TileQ8_0 = TileScaled<Bits<8>, 128>;
using TileQ4_0 = TileScaled<Bits<4>, 8>;
using TileQ5_0 = TileScaled<Bits<5>, 16>;
using TileIQ4_NL = TileScaled<Nl4Bits, 128>;
using TileQ4_1 = TileScaledAndOffset<4>;
using TileQ5_1 = TileScaledAndOffset<5>;

// ---- super-blocks of 256 inputs
// Q4_K, Q5_K: f16 d[r], f16 dmin[r], then per 32 inputs u8 scale[r], u8 minimum[r].
template <int kBits>
struct TileScaleMin {
  using Quants = Bits<kBits>;
  using Block = ScaledAndOffset;
  static constexpr int kBlocks = 8;
  static constexpr int kParts = 1;
  static constexpr int kSubBytes = 32 + Quants::kBytes;
  static constexpr int kBytes = 64 + kBlocks * kSubBytes;
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
using TileQ4_K = TileScaleMin<4>;
using TileQ5_K = TileScaleMin<5>;

// Q6_K, Q3_K: f16 d[r], then per 32 inputs i8 scale[2][r], for each half; quants kCentre too large.
template <int kBits, int kCentre>
struct TileHalves {
  using Quants = Bits<kBits>;
  static constexpr int kBlocks = 8;
  static constexpr int kParts = 2;
  static constexpr int kSubBytes = 32 + Quants::kBytes;
  static constexpr int kBytes = 32 + kBlocks * kSubBytes;
  struct Block {
    const uint8_t* quants;
    F32x16 d;
    I32x16 scale[2];
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
    static_assert(kCentre == 32 || kCentre == 4);
    const int32_t* excess = kCentre == 32 ? x.minus_32_sum : x.minus_4_sum;
    const I32x16 first = dots[0] + splat_i32(excess[0]);
    const I32x16 second = dots[1] + splat_i32(excess[1]);
    return fma(w.d * splat(x.d), to_f32(first * w.scale[0] + second * w.scale[1]), acc);
  }
};
using TileQ6_K = TileHalves<6, 32>;
using TileQ3_K = TileHalves<3, 4>;

// f16 d[r], f16 dmin[r], then per 32 inputs u8 s[2][r], for each half: low nibble a scale, high a
// minimum.
struct TileQ2_K {
  using Quants = Bits<2>;
  static constexpr int kBlocks = 8;
  static constexpr int kParts = 2;
  static constexpr int kSubBytes = 32 + Quants::kBytes;
  static constexpr int kBytes = 64 + kBlocks * kSubBytes;
  struct Block {
    const uint8_t* quants;
    F32x16 d, quarter_min;
    I32x16 scale[2], minimum[2];
  };
  static HWY_INLINE Block load(const uint8_t* p, int b) {
    const auto* scales = reinterpret_cast<const uint16_t*>(p);
    const uint8_t* sub = p + 64 + b * kSubBytes;
    const I32x16 first = load_bytes(sub);
    const I32x16 second = load_bytes(sub + 16);
    return {sub + 32,
            load_f16(scales),
            load_f16(scales + 16) * splat(0.25f),
            {shift_and<0, 15>(first), shift_and<0, 15>(second)},
            {shift_and<4, 15>(first), shift_and<4, 15>(second)}};
  }
  static HWY_INLINE F32x16 add(const Block& w,
                               const ActivationBlock& x,
                               const I32x16* dots,
                               const F32x16& acc) {
    const I32x16 dot = dots[0] * w.scale[0] + dots[1] * w.scale[1];
    const I32x16 minus_4_minima =
        w.minimum[0] * splat_i32(x.minus_4_sum[0]) + w.minimum[1] * splat_i32(x.minus_4_sum[1]);
    const F32x16 d = splat(x.d);
    return fma(w.d * d, to_f32(dot), fma(w.quarter_min * d, to_f32(minus_4_minima), acc));
  }
};

// f16 d[r], then per 32 inputs i8 scale[r].
struct TileIQ4_XS {
  using Quants = Nl4Bits;
  using Block = Scaled;
  static constexpr int kBlocks = 8;
  static constexpr int kParts = 1;
  static constexpr int kSubBytes = 16 + Quants::kBytes;
  static constexpr int kBytes = 32 + kBlocks * kSubBytes;
  static HWY_INLINE Block load(const uint8_t* p, int b) {
    const uint8_t* sub = p + 32 + b * kSubBytes;
    return {sub + 16,
            load_f16(reinterpret_cast<const uint16_t*>(p)) *
                to_f32(load_bytes(reinterpret_cast<const int8_t*>(sub)))};
  }
  static HWY_INLINE F32x16 add(const Block& w,
                               const ActivationBlock& x,
                               const I32x16* dots,
                               const F32x16& acc) {
    return add_scaled(w, x, dots[0] + splat_i32(x.minus_128_sum), acc);
  }
};

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#endif  // per-target guard
