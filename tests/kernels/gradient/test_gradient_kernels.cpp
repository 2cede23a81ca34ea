// The fp32 product and the row operations against double, on every instruction set.
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "kernels/gradient/gemm.h"
#include "kernels/gradient/rows.h"
#include "tests/kernels/compare.h"
#include "tests/support/random.h"

using namespace headwater;
using testing::Random;

namespace {

struct Shape {
  int64_t m, n, k;
};

// Sides of one, around the tile and the blocks, and deeper than one block of depth.
const Shape kShapes[] = {{1, 1, 1},
                         {1, 64, 33},
                         {6, 16, 256},
                         {7, 17, 257},
                         {12, 32, 64},
                         {64, 100, 64},
                         {97, 513, 65},
                         {130, 40, 600},
                         {3, 5, 0}};

constexpr float kSentinel = 123.0f;

void check_product(const Shape& s, bool a_transposed, bool b_transposed, bool add) {
  Random random(static_cast<uint64_t>(s.m * 1000 + s.n * 10 + s.k));
  const std::vector<float> a = random.values(s.m * s.k, 1), b = random.values(s.k * s.n, 1);
  const gradient::Strided a_view =
      a_transposed ? gradient::transposed(a.data(), s.m) : gradient::rows_of(a.data(), s.k);
  const gradient::Strided b_view =
      b_transposed ? gradient::transposed(b.data(), s.k) : gradient::rows_of(b.data(), s.n);
  const int64_t stride = s.n + 3;
  std::vector<float> c(static_cast<size_t>(s.m * stride), kSentinel);
  gradient::GemmScratch scratch;
  gradient::gemm(s.m, s.n, s.k, a_view, b_view, c.data(), stride, add, scratch);
  double worst = 0;
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < stride; ++j) {
      double sum = add || j >= s.n ? kSentinel : 0;
      for (int64_t p = 0; p < s.k && j < s.n; ++p)
        sum += double{a_view.data[i * a_view.row_stride + p * a_view.col_stride]} *
               b_view.data[p * b_view.row_stride + j * b_view.col_stride];
      worst = std::max(worst, std::abs(sum - double{c[static_cast<size_t>(i * stride + j)]}));
    }
  }
  INFO(s.m << " x " << s.n << " x " << s.k << " transposed " << a_transposed << b_transposed);
  CHECK(worst <= 1e-5 * std::sqrt(static_cast<double>(s.k) + 1) + (add ? 2e-5 : 0));
}

}  // namespace

TEST_CASE("gemm: equals the sum in double for every shape and layout", "[kernels][unit]") {
  testing::for_each_target([](int64_t) {
    for (const Shape& shape : kShapes)
      for (const bool a_transposed : {false, true})
        for (const bool b_transposed : {false, true})
          for (const bool add : {false, true})
            check_product(shape, a_transposed, b_transposed, add);
  });
}

TEST_CASE("gemm: a row does not depend on the rows beside it", "[kernels][unit]") {
  Random random(5);
  const std::vector<float> a = random.values(100 * 300, 1), b = random.values(300 * 70, 1);
  std::vector<float> whole(100 * 70), row(70);
  gradient::GemmScratch scratch;
  const auto b_view = gradient::rows_of(b.data(), 70);
  gradient::gemm(
      100, 70, 300, gradient::rows_of(a.data(), 300), b_view, whole.data(), 70, false, scratch);
  for (const int64_t i : {0, 41, 96, 99}) {
    const auto a_view = gradient::rows_of(a.data() + i * 300, 300);
    gradient::gemm(1, 70, 300, a_view, b_view, row.data(), 70, false, scratch);
    CHECK(std::equal(row.begin(), row.end(), whole.begin() + i * 70));
  }
}

TEST_CASE("Row operations: equal double, at every length", "[kernels][unit]") {
  testing::for_each_target([](int64_t) {
    for (const int64_t n : {1, 15, 16, 17, 100}) {
      Random random(static_cast<uint64_t>(n));
      const std::vector<float> x = random.values(n, 2), d = random.values(n, 1);
      float largest = x[0];
      for (const float value : x) largest = std::max(largest, value);
      CHECK(gradient::max_of(x.data(), n) == largest);

      std::vector<float> p(x);
      const float sum = gradient::exp_of(p.data(), largest, 0.5f, n, p.data());
      double exact = 0, dot = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double e = std::exp(0.5 * (double{x[i]} - largest));
        CHECK(p[i] == Approx(e).epsilon(1e-6));
        exact += e;
        dot += double{p[i]} * d[i];
      }
      CHECK(sum == Approx(exact).epsilon(1e-6));
      CHECK(gradient::dot_of(p.data(), d.data(), n) == Approx(dot).margin(1e-5));
      gradient::scale_by(1 / sum, n, p.data());

      constexpr float kMean = 0.25f, kEps = 1e-5f;
      std::vector<float> ds(d);
      gradient::softmax_gradient(2.0f, p.data(), ds.data(), kMean, n, ds.data());
      double effect = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double change = double{p[i]} * (double{d[i]} - kMean);
        CHECK(ds[i] == Approx(2 * change).margin(1e-6));
        effect += std::abs(change / (1.0 - p[i] + kEps));
      }
      // A single entry has weight 1: the quotient by eps is as inexact as 1 - p.
      CHECK(gradient::masking_effect(p.data(), d.data(), kMean, kEps, n) ==
            Approx(effect).epsilon(n == 1 ? 0.1 : 1e-4));
      std::vector<float> y(d);
      gradient::add_scaled(-3.0f, x.data(), n, y.data());
      for (size_t i = 0; i < x.size(); ++i) CHECK(y[i] == Approx(d[i] - 3.0 * x[i]).margin(1e-5));
    }
  });
}

TEST_CASE("gemm: speed", "[.][bench]") {
  Random random(1);
  const std::vector<float> a = random.values(192 * 512, 1), b = random.values(1408 * 512, 1);
  std::vector<float> c(192 * 1408);
  gradient::GemmScratch scratch;
  for (int round = 0; round < 3; ++round) {
    const std::clock_t begin = std::clock();
    for (int i = 0; i < 20; ++i)
      gradient::gemm(192,
                     1408,
                     512,
                     gradient::rows_of(a.data(), 512),
                     gradient::transposed(b.data(), 512),
                     c.data(),
                     1408,
                     false,
                     scratch);
    const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    std::printf("%.1f GFLOP/s of CPU time\n", 20 * 2.0 * 192 * 1408 * 512 / seconds / 1e9);
  }
}
