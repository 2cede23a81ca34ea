// Sixteen lanes of float or int32, whatever the register width: one 512-bit, two 256-bit or four
// 128-bit registers. Every operation gives the same bits on every target, so
// kernels written with it do too.
//
// Per-target header of Highway: include it after foreach_target.h, use it between HW_BEFORE_SIMD()
// and HW_AFTER_SIMD(), inside headwater::HWY_NAMESPACE.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/base/dtype.h"

#if defined(HEADWATER_LANES16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef HEADWATER_LANES16_INL_H_
#undef HEADWATER_LANES16_INL_H_
#else
#define HEADWATER_LANES16_INL_H_
#endif

#include <hwy/highway.h>

#undef HW_BEFORE_SIMD
#undef HW_AFTER_SIMD
#if HWY_TARGET == HWY_AVX3_DL
// Highway checks for AVX-512 VNNI at run time but does not let the compiler use it.
#define HW_BEFORE_SIMD()  \
  HWY_BEFORE_NAMESPACE(); \
  HWY_PUSH_ATTRIBUTES("avx512vnni")
#define HW_AFTER_SIMD() \
  HWY_POP_ATTRIBUTES    \
  HWY_AFTER_NAMESPACE()
#else
#define HW_BEFORE_SIMD() HWY_BEFORE_NAMESPACE()
#define HW_AFTER_SIMD() HWY_AFTER_NAMESPACE()
#endif

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Df = hn::CappedTag<float, 16>;
using Di = hn::RebindToSigned<Df>;
using Vf = hn::Vec<Df>;
using Vi = hn::Vec<Di>;
constexpr int kLanes = hn::MaxLanes(Df());  // floats of one register
constexpr int kRegs = 16 / kLanes;          // registers of sixteen floats
constexpr Df kDf{};
constexpr Di kDi{};

struct F32x16 {
  Vf v[kRegs];
};
struct I32x16 {
  Vi v[kRegs];
};

#define HW_FOR_REGS _Pragma("GCC unroll 4") for (int i = 0; i < kRegs; ++i)

// ---- float
HWY_INLINE F32x16 splat(float value) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::Set(kDf, value);
  return r;
}
HWY_INLINE F32x16 load(const float* p) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::LoadU(kDf, p + i * kLanes);
  return r;
}
HWY_INLINE void store(const F32x16& a, float* p) {
  HW_FOR_REGS hn::StoreU(a.v[i], kDf, p + i * kLanes);
}
HWY_INLINE F32x16 operator+(const F32x16& a, const F32x16& b) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::Add(a.v[i], b.v[i]);
  return r;
}
HWY_INLINE F32x16 operator-(const F32x16& a, const F32x16& b) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::Sub(a.v[i], b.v[i]);
  return r;
}
HWY_INLINE F32x16 operator*(const F32x16& a, const F32x16& b) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::Mul(a.v[i], b.v[i]);
  return r;
}
HWY_INLINE F32x16 operator/(const F32x16& a, const F32x16& b) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::Div(a.v[i], b.v[i]);
  return r;
}
// a * b + c, rounded once.
HWY_INLINE F32x16 fma(const F32x16& a, const F32x16& b, const F32x16& c) {
  F32x16 r;
#if HWY_NATIVE_FMA
  HW_FOR_REGS r.v[i] = hn::MulAdd(a.v[i], b.v[i], c.v[i]);
#else
  float x[16], y[16], z[16];
  store(a, x);
  store(b, y);
  store(c, z);
  for (int i = 0; i < 16; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  r = load(z);
#endif
  return r;
}
HWY_INLINE F32x16 max(const F32x16& a, const F32x16& b) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::Max(a.v[i], b.v[i]);
  return r;
}
HWY_INLINE F32x16 min(const F32x16& a, const F32x16& b) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::Min(a.v[i], b.v[i]);
  return r;
}
// Lane i of a where bit i of keep is set, of b elsewhere (whatever the lane not taken holds).
HWY_INLINE F32x16 select(uint32_t keep, const F32x16& a, const F32x16& b) {
  alignas(64) static constexpr int32_t kBit[16] = {1 << 0,
                                                   1 << 1,
                                                   1 << 2,
                                                   1 << 3,
                                                   1 << 4,
                                                   1 << 5,
                                                   1 << 6,
                                                   1 << 7,
                                                   1 << 8,
                                                   1 << 9,
                                                   1 << 10,
                                                   1 << 11,
                                                   1 << 12,
                                                   1 << 13,
                                                   1 << 14,
                                                   1 << 15};
  F32x16 r;
  HW_FOR_REGS {
    const Vi bits = hn::Set(kDi, static_cast<int32_t>(keep));
    const auto mask = hn::RebindMask(kDf, hn::TestBit(bits, hn::Load(kDi, kBit + i * kLanes)));
    r.v[i] = hn::IfThenElse(mask, a.v[i], b.v[i]);
  }
  return r;
}
// Sums and maxima over the lanes, in one fixed order.
HWY_INLINE float sum_lanes(const F32x16& a) {
  float x[16];
  store(a, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  return x[0];
}
HWY_INLINE float max_lanes(const F32x16& a) {
  Vf m = a.v[0];
  for (int i = 1; i < kRegs; ++i) m = hn::Max(m, a.v[i]);
  return hn::GetLane(hn::MaxOfLanes(kDf, m));
}

// e^x to about 2 units in the last place; 0 below -87, finite above 88. NaN gives anything.
HWY_INLINE F32x16 exp(const F32x16& value) {
  F32x16 r;
  const F32x16 x = min(max(value, splat(-87.5f)), splat(88.0f));
  F32x16 n;
  I32x16 exponent;
  const F32x16 scaled = x * splat(1.44269504f);
  HW_FOR_REGS {
    exponent.v[i] = hn::NearestInt(scaled.v[i]);
    n.v[i] = hn::ConvertTo(kDf, exponent.v[i]);
  }
  F32x16 t = fma(n, splat(-0.693359375f), x);
  t = fma(n, splat(2.12194440e-4f), t);
  F32x16 p = splat(1.9875691500e-4f);
  p = fma(p, t, splat(1.3981999507e-3f));
  p = fma(p, t, splat(8.3334519073e-3f));
  p = fma(p, t, splat(4.1665795894e-2f));
  p = fma(p, t, splat(1.6666665459e-1f));
  p = fma(p, t, splat(5.0000001201e-1f));
  p = fma(p, t * t, t + splat(1.0f));
  HW_FOR_REGS {
    const Vi power = hn::ShiftLeft<23>(hn::Add(exponent.v[i], hn::Set(kDi, 127)));
    r.v[i] = hn::Mul(p.v[i], hn::BitCast(kDf, power));
    r.v[i] = hn::IfThenElseZero(hn::Gt(value.v[i], hn::Set(kDf, -87.0f)), r.v[i]);
  }
  return r;
}

// ---- 16-bit floats in memory (exact up, nearest even down)
HWY_INLINE F32x16 load_f16(const uint16_t* p) {
  F32x16 r;
  const hn::Rebind<hwy::float16_t, Df> d16;
  HW_FOR_REGS r.v[i] =
      hn::PromoteTo(kDf, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p + i * kLanes)));
  return r;
}
HWY_INLINE F32x16 load_bf16(const uint16_t* p) {
  F32x16 r;
  const hn::Rebind<uint16_t, Df> d16;
  const hn::RebindToUnsigned<Df> du;
  HW_FOR_REGS r.v[i] =
      hn::BitCast(kDf, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, p + i * kLanes))));
  return r;
}

// ---- integers
HWY_INLINE I32x16 splat_i32(int32_t value) {
  I32x16 r;
  HW_FOR_REGS r.v[i] = hn::Set(kDi, value);
  return r;
}
HWY_INLINE I32x16 operator+(const I32x16& a, const I32x16& b) {
  I32x16 r;
  HW_FOR_REGS r.v[i] = hn::Add(a.v[i], b.v[i]);
  return r;
}
HWY_INLINE I32x16 operator*(const I32x16& a, const I32x16& b) {
  I32x16 r;
  HW_FOR_REGS r.v[i] = hn::Mul(a.v[i], b.v[i]);
  return r;
}
HWY_INLINE I32x16 operator|(const I32x16& a, const I32x16& b) {
  I32x16 r;
  HW_FOR_REGS r.v[i] = hn::Or(a.v[i], b.v[i]);
  return r;
}
// a shifted to the right, or to the left where kShift is negative; then mask.
template <int kShift, int32_t kMask>
HWY_INLINE I32x16 shift_and(const I32x16& a) {
  I32x16 r;
  HW_FOR_REGS {
    Vi shifted = a.v[i];
    if constexpr (kShift > 0) shifted = hn::ShiftRight<kShift>(shifted);
    if constexpr (kShift < 0) shifted = hn::ShiftLeft<-kShift>(shifted);
    r.v[i] = hn::And(shifted, hn::Set(kDi, kMask));
  }
  return r;
}
HWY_INLINE int32_t sum_lanes(const I32x16& a) {
  Vi sum = a.v[0];
  for (int i = 1; i < kRegs; ++i) sum = hn::Add(sum, a.v[i]);
  return hn::GetLane(hn::SumOfLanes(kDi, sum));
}
HWY_INLINE I32x16 nearest_int(const F32x16& a) {  // halves to even
  I32x16 r;
  HW_FOR_REGS r.v[i] = hn::NearestInt(a.v[i]);
  return r;
}
HWY_INLINE F32x16 to_f32(const I32x16& a) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::ConvertTo(kDf, a.v[i]);
  return r;
}
HWY_INLINE I32x16 load_i32(const uint8_t* p) {  // of 64 bytes
  I32x16 r;
  HW_FOR_REGS r.v[i] = hn::LoadU(kDi, reinterpret_cast<const int32_t*>(p) + i * kLanes);
  return r;
}
HWY_INLINE void store_i16(const I32x16& a, int16_t* p) {  // a within 16 bits
  const hn::Rebind<int16_t, Df> d16;
  HW_FOR_REGS hn::StoreU(hn::DemoteTo(d16, a.v[i]), d16, p + i * kLanes);
}
// Each of the 64 bytes of index, all below 16, becomes the byte of the table there.
HWY_INLINE I32x16 lookup_bytes(const uint8_t (&table)[16], const I32x16& index) {
  I32x16 r;
#if HWY_TARGET == HWY_SCALAR
  HW_FOR_REGS {
    const auto bytes = static_cast<uint32_t>(hn::GetLane(index.v[i]));
    const uint32_t values = table[bytes & 15] | table[bytes >> 8 & 15] << 8 |
                            table[bytes >> 16 & 15] << 16 | uint32_t{table[bytes >> 24 & 15]} << 24;
    r.v[i] = hn::Set(kDi, static_cast<int32_t>(values));
  }
#else
  const hn::Repartition<uint8_t, Di> d8;
  const Vi values = hn::BitCast(kDi, hn::LoadDup128(d8, table));
  HW_FOR_REGS r.v[i] = hn::TableLookupBytes(values, index.v[i]);
#endif
  return r;
}
template <typename Byte>  // int8_t or uint8_t
HWY_INLINE I32x16 load_bytes(const Byte* p) {
  I32x16 r;
  const hn::Rebind<Byte, Df> d8;
  HW_FOR_REGS r.v[i] = hn::PromoteTo(kDi, hn::LoadU(d8, p + i * kLanes));
  return r;
}

// ---- pairs: two 16-bit numbers in every lane, the first in the low half
// acc + w.first * x[0] + w.second * x[1], exactly, for w not negative.
HWY_INLINE I32x16 dot_pairs(I32x16 acc, const I32x16& w, const int16_t* x) {
#if HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_AVX2
  int32_t pair;
  std::memcpy(&pair, x, sizeof(pair));
  HW_FOR_REGS {
#if HWY_TARGET == HWY_AVX3_DL
    acc.v[i].raw = _mm512_dpwssd_epi32(acc.v[i].raw, w.v[i].raw, _mm512_set1_epi32(pair));
#else
    const __m256i products = _mm256_madd_epi16(w.v[i].raw, _mm256_set1_epi32(pair));
    acc.v[i].raw = _mm256_add_epi32(acc.v[i].raw, products);
#endif
    // Without this GCC 12 puts off the sums of a block and keeps its products in memory.
    asm("" : "+v"(acc.v[i].raw));
  }
#else
  HW_FOR_REGS {
    const Vi first = hn::And(w.v[i], hn::Set(kDi, 0xFFFF));
    const Vi second = hn::ShiftRight<16>(w.v[i]);
    acc.v[i] = hn::Add(acc.v[i], hn::Mul(first, hn::Set(kDi, x[0])));
    acc.v[i] = hn::Add(acc.v[i], hn::Mul(second, hn::Set(kDi, x[1])));
  }
#endif
  return acc;
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#endif  // per-target guard
