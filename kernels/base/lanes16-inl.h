// Sixteen lanes of float or int32 and sixty-four bytes, whatever the register width: one 512-bit,
// two 256-bit or four 128-bit registers. Every operation gives the same bits on every target, so
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
HWY_INLINE F32x16 to_f32(const I32x16& a) {
  F32x16 r;
  HW_FOR_REGS r.v[i] = hn::ConvertTo(kDf, a.v[i]);
  return r;
}
template <typename Byte>  // int8_t or uint8_t
HWY_INLINE I32x16 load_bytes(const Byte* p) {
  I32x16 r;
  const hn::Rebind<Byte, Df> d8;
  HW_FOR_REGS r.v[i] = hn::PromoteTo(kDi, hn::LoadU(d8, p + i * kLanes));
  return r;
}

// ---- sixty-four bytes: lane i of the sixteen owns bytes 4i .. 4i + 3
// load_u8(p); a | b; shift_right_and<s, m>: (a >> s) & m in every byte, m < 256 >> s;
// shift_left_and<s, m>: (a << s) & m in every byte, m clear below bit s.
#if HWY_TARGET == HWY_SCALAR  // Highway has no byte vectors here
struct U8x64 {
  uint8_t v[64];
};
inline U8x64 load_u8(const uint8_t* p) {
  U8x64 r;
  std::memcpy(r.v, p, 64);
  return r;
}
inline U8x64 operator|(const U8x64& a, const U8x64& b) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] | b.v[i];
  return r;
}
template <int kShift, int kMask>
inline U8x64 shift_right_and(const U8x64& a) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>((a.v[i] >> kShift) & kMask);
  return r;
}
template <int kShift, int kMask>
inline U8x64 shift_left_and(const U8x64& a) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>((a.v[i] << kShift) & kMask);
  return r;
}
#else
using Du8 = hn::Repartition<uint8_t, Df>;
constexpr Du8 kDu8{};
struct U8x64 {
  hn::Vec<Du8> v[kRegs];
};
HWY_INLINE U8x64 load_u8(const uint8_t* p) {
  U8x64 r;
  HW_FOR_REGS r.v[i] = hn::LoadU(kDu8, p + i * 4 * kLanes);
  return r;
}
HWY_INLINE U8x64 operator|(const U8x64& a, const U8x64& b) {
  U8x64 r;
  HW_FOR_REGS r.v[i] = hn::Or(a.v[i], b.v[i]);
  return r;
}
template <int kShift, int kMask>
HWY_INLINE U8x64 shift_right_and(const U8x64& a) {
  U8x64 r;
  HW_FOR_REGS {
    const Vi words = hn::BitCast(kDi, a.v[i]);
    r.v[i] = hn::And(hn::BitCast(kDu8, kShift == 0 ? words : hn::ShiftRight<kShift>(words)),
                     hn::Set(kDu8, static_cast<uint8_t>(kMask)));
  }
  return r;
}
template <int kShift, int kMask>
HWY_INLINE U8x64 shift_left_and(const U8x64& a) {
  U8x64 r;
  HW_FOR_REGS r.v[i] = hn::And(hn::BitCast(kDu8, hn::ShiftLeft<kShift>(hn::BitCast(kDi, a.v[i]))),
                               hn::Set(kDu8, static_cast<uint8_t>(kMask)));
  return r;
}
#endif  // HWY_SCALAR

// acc[i] += sum over j < 4 of w[4i + j] * x[j], exactly, for w < 64 and x within [-127, 127].
// With kEightBits w < 256, and where kDotCentres w - 128 is multiplied instead of w.
constexpr bool kDotCentres = HWY_TARGET == HWY_AVX2;

template <bool kEightBits>
HWY_INLINE I32x16 dot4(const I32x16& acc, const U8x64& w, const int8_t* x) {
  I32x16 r;
#if HWY_TARGET == HWY_AVX3_DL
  int32_t quad;
  std::memcpy(&quad, x, 4);
  r.v[0] = Vi{_mm512_dpbusd_epi32(acc.v[0].raw, w.v[0].raw, _mm512_set1_epi32(quad))};
#elif HWY_TARGET == HWY_AVX2
  int32_t quad;
  std::memcpy(&quad, x, 4);
  HW_FOR_REGS {
    __m256i magnitude = w.v[i].raw;
    __m256i signed_x = _mm256_set1_epi32(quad);
    if constexpr (kEightBits) {  // pairs of u8 * s8 would saturate 16 bits; |w - 128| * s8 do not
      const __m256i centred =
          _mm256_xor_si256(magnitude, _mm256_set1_epi8(static_cast<char>(0x80)));
      magnitude = _mm256_abs_epi8(centred);
      signed_x = _mm256_sign_epi8(signed_x, centred);
    }
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, signed_x);
    const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    r.v[i] = Vi{_mm256_add_epi32(acc.v[i].raw, quads)};
  }
#else
  uint8_t bytes[64];
  std::memcpy(bytes, w.v, sizeof(bytes));
  int32_t sums[16];
  HW_FOR_REGS hn::StoreU(acc.v[i], kDi, sums + i * kLanes);
  for (int lane = 0; lane < 16; ++lane)
    for (int j = 0; j < 4; ++j) sums[lane] += bytes[4 * lane + j] * x[j];
  HW_FOR_REGS r.v[i] = hn::LoadU(kDi, sums + i * kLanes);
#endif
  return r;
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#endif  // per-target guard
