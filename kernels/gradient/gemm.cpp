#include "kernels/gradient/gemm.h"

#include <algorithm>

#include "kernels/base/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gradient/gemm.cpp"
#include <hwy/foreach_target.h>

#include "kernels/base/lanes16-inl.h"

HW_BEFORE_SIMD();
namespace headwater::HWY_NAMESPACE {

using gradient::GemmScratch;
using gradient::kGemmDepth;
using gradient::Strided;

// A tile of c in registers: two registers wide, and as high as leaves room for one row of b and
// one element of a: 12 of 16 registers, 24 of 32.
constexpr int kTileCols = 2 * kLanes;
constexpr int kTileRows = kRegs == 1 ? 12 : 6;
constexpr int64_t kBlockRows = 96;   // of a: a panel stays in the second-level cache
constexpr int64_t kBlockCols = 512;  // of b, likewise

// tile[kTileRows, kTileCols] = a[k, kTileRows]^T * b[k, kTileCols], both packed, k outermost.
HWY_INLINE void tile_product(int64_t k, const float* a, const float* b, Vf (&acc)[kTileRows][2]) {
  _Pragma("GCC unroll 12") for (int r = 0; r < kTileRows; ++r) {
    acc[r][0] = hn::Zero(kDf);
    acc[r][1] = hn::Zero(kDf);
  }
  for (int64_t p = 0; p < k; ++p, a += kTileRows, b += kTileCols) {
    const Vf b0 = hn::LoadU(kDf, b);
    const Vf b1 = hn::LoadU(kDf, b + kLanes);
    _Pragma("GCC unroll 12") for (int r = 0; r < kTileRows; ++r) {
      const Vf element = hn::Set(kDf, a[r]);
      acc[r][0] = hn::MulAdd(element, b0, acc[r][0]);
      acc[r][1] = hn::MulAdd(element, b1, acc[r][1]);
    }
  }
}

HWY_INLINE void write(const Vf& value, bool add, float* c) {
  hn::StoreU(add ? hn::Add(hn::LoadU(kDf, c), value) : value, kDf, c);
}

// One tile of c of which rows x cols exist.
HWY_INLINE void tile(int64_t k,
                     const float* a,
                     const float* b,
                     int64_t rows,
                     int64_t cols,
                     bool add,
                     float* c,
                     int64_t c_stride) {
  Vf acc[kTileRows][2];
  tile_product(k, a, b, acc);
  if (rows == kTileRows && cols == kTileCols) {
    _Pragma("GCC unroll 12") for (int r = 0; r < kTileRows; ++r) {
      write(acc[r][0], add, c + r * c_stride);
      write(acc[r][1], add, c + r * c_stride + kLanes);
    }
    return;
  }
  float whole[kTileRows][kTileCols];
  for (int r = 0; r < kTileRows; ++r) {
    hn::StoreU(acc[r][0], kDf, whole[r]);
    hn::StoreU(acc[r][1], kDf, whole[r] + kLanes);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < cols; ++j)
      c[r * c_stride + j] = whole[r][j] + (add ? c[r * c_stride + j] : 0.0f);
}

// Panels of kWidth lines side by side, [depth, kWidth] each, the last padded by zeros. Line i of
// the source is x + i * line_stride, its elements depth_stride apart.
template <int kWidth>
inline void pack(const float* x,
                 int64_t line_stride,
                 int64_t depth_stride,
                 int64_t lines,
                 int64_t depth,
                 float* out) {
  for (int64_t first = 0; first < lines; first += kWidth, out += depth * kWidth) {
    const float* panel = x + first * line_stride;
    const int64_t count = std::min<int64_t>(kWidth, lines - first);
    if (count == kWidth && line_stride == 1) {
      for (int64_t p = 0; p < depth; ++p)
        for (int i = 0; i < kWidth; ++i) out[p * kWidth + i] = panel[p * depth_stride + i];
    } else if (count == kWidth) {
      for (int64_t p = 0; p < depth; ++p)
        for (int i = 0; i < kWidth; ++i)
          out[p * kWidth + i] = panel[i * line_stride + p * depth_stride];
    } else {
      for (int64_t p = 0; p < depth; ++p)
        for (int64_t i = 0; i < kWidth; ++i)
          out[p * kWidth + i] = i < count ? panel[i * line_stride + p * depth_stride] : 0.0f;
    }
  }
}

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

inline void gemm_blocked(int64_t m,
                         int64_t n,
                         int64_t k,
                         const Strided& a,
                         const Strided& b,
                         float* c,
                         int64_t c_stride,
                         bool add,
                         GemmScratch& scratch) {
  if (k == 0) {
    for (int64_t i = 0; i < m && !add; ++i) std::fill_n(c + i * c_stride, n, 0.0f);
    return;
  }
  const int64_t deepest = std::min(k, kGemmDepth);
  const int64_t a_size = round_up(std::min(m, kBlockRows), kTileRows) * deepest;
  const int64_t b_size = round_up(std::min(n, kBlockCols), kTileCols) * deepest;
  if (scratch.a.size() < static_cast<size_t>(a_size)) scratch.a.resize(static_cast<size_t>(a_size));
  if (scratch.b.size() < static_cast<size_t>(b_size)) scratch.b.resize(static_cast<size_t>(b_size));
  for (int64_t col = 0; col < n; col += kBlockCols) {
    const int64_t cols = std::min(kBlockCols, n - col);
    for (int64_t p = 0; p < k; p += kGemmDepth) {
      const int64_t depth = std::min(kGemmDepth, k - p);
      pack<kTileCols>(b.data + p * b.row_stride + col * b.col_stride,
                      b.col_stride,
                      b.row_stride,
                      cols,
                      depth,
                      scratch.b.data());
      for (int64_t row = 0; row < m; row += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, m - row);
        pack<kTileRows>(a.data + row * a.row_stride + p * a.col_stride,
                        a.row_stride,
                        a.col_stride,
                        rows,
                        depth,
                        scratch.a.data());
        for (int64_t j = 0; j < cols; j += kTileCols)
          for (int64_t i = 0; i < rows; i += kTileRows)
            tile(depth,
                 scratch.a.data() + i * depth,
                 scratch.b.data() + j * depth,
                 std::min<int64_t>(kTileRows, rows - i),
                 std::min<int64_t>(kTileCols, cols - j),
                 add || p > 0,
                 c + (row + i) * c_stride + col + j,
                 c_stride);
      }
    }
  }
}

}  // namespace headwater::HWY_NAMESPACE
HW_AFTER_SIMD();

#if HWY_ONCE
namespace headwater {

HWY_EXPORT(gemm_blocked);

namespace gradient {

void gemm(int64_t m,
          int64_t n,
          int64_t k,
          const Strided& a,
          const Strided& b,
          float* c,
          int64_t c_stride,
          bool add,
          GemmScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(gemm_blocked)(m, n, k, a, b, c, c_stride, add, scratch);
}

}  // namespace gradient
}  // namespace headwater
#endif  // HWY_ONCE
