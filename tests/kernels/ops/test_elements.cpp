// The element operations that some architectures need, against their formulas in double.
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels/device_memory.h"
#include "tests/support/random.h"

namespace headwater {
namespace {

using testing::Random;
using Values = std::vector<float>;

constexpr int64_t kRows = 3;

// Largest difference over the first cols of each row, relative to 1 + |expected|; the rest of a row
// must be as before.
double worst(const Values& got,
             const Values& before,
             int64_t cols,
             int64_t stride,
             const std::function<double(int64_t row, int64_t col)>& expected) {
  double largest = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t col = 0; col < stride; ++col) {
      const auto at = static_cast<size_t>(row * stride + col);
      if (col >= cols) {
        REQUIRE(got[at] == before[at]);
        continue;
      }
      const double want = expected(row, col);
      largest = std::max(largest, std::abs(got[at] - want) / (1 + std::abs(want)));
    }
  }
  return largest;
}

void check_elements(Ops& ops) {
  constexpr double kTolerance = 2e-6;
  testing::DeviceMemory memory(ops);
  for (const int64_t cols : {6, 48, 96, 210}) {
    CAPTURE(ops.name(), cols);
    memory.reset();
    const int64_t stride = cols + 5;
    const Values x = Random(7).values(kRows * stride, 4.0f);
    const Values y = Random(8).values(kRows * stride, 2.0f);
    const auto view = [&](const Values& values, int64_t num_cols) {
      return memory.rows(values, kRows, num_cols, stride);
    };
    const auto at = [stride](const Values& values, int64_t row, int64_t col) {
      return double{values[static_cast<size_t>(row * stride + col)]};
    };

    const Matrix capped = view(x, cols);
    ops.softcap(capped, 3.0f);
    CHECK(worst(memory.get(capped), x, cols, stride, [&](int64_t row, int64_t col) {
            return 3.0 * std::tanh(at(x, row, col) / 3.0);
          }) < kTolerance);

    const Matrix added = view(x, cols);
    ops.add_scaled(view(y, cols), 0.25f, added);
    CHECK(worst(memory.get(added), x, cols, stride, [&](int64_t row, int64_t col) {
            return at(x, row, col) + 0.25 * at(y, row, col);
          }) < kTolerance);

    const int64_t half = cols / 2;
    const Matrix gated = view(y, half);
    ops.gelu_mul(view(x, 2 * half), gated);
    CHECK(worst(memory.get(gated), y, half, stride, [&](int64_t row, int64_t col) {
            const double g = at(x, row, col);
            const double inner = std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
            return 0.5 * g * (1 + std::tanh(inner)) * at(x, row, half + col);
          }) < kTolerance);

    for (const int32_t heads : {1, 3}) {
      const int64_t head_dim = cols / heads;
      const Values weight = Random(9).values(head_dim, 1.0f);
      const Matrix normed = view(x, cols);
      ops.head_norm(normed, memory.put(weight), 1e-5f, heads);
      CHECK(worst(memory.get(normed), x, cols, stride, [&](int64_t row, int64_t col) {
              double sum = 0;
              const int64_t first = col / head_dim * head_dim;
              for (int64_t d = 0; d < head_dim; ++d) sum += std::pow(at(x, row, first + d), 2);
              return at(x, row, col) / std::sqrt(sum / static_cast<double>(head_dim) + 1e-5) *
                     weight[static_cast<size_t>(col - first)];
            }) < kTolerance);
    }
  }
}

TEST_CASE("element operations follow their formulas", "[kernels][unit]") {
  ThreadPool pool(2);
  check_elements(*make_ref_ops(pool));
  check_elements(*make_cpu_ops(pool));
}

TEST_CASE("element operations follow their formulas on the GPU", "[kernels][cuda]") {
  if (const auto ops = testing::cuda_or_skip()) check_elements(*ops);
}

TEST_CASE("far from zero the gates and the cap saturate", "[kernels][unit]") {
  ThreadPool pool(1);
  for (const auto& ops : {make_ref_ops(pool), make_cpu_ops(pool)}) {
    CAPTURE(ops->name());
    Values x = {-1e6f, -100.0f, 100.0f, 1e6f};
    Values gate_up = {-1e3f, 1e3f, 2.0f, 2.0f};
    Values out(2);
    ops->softcap({x.data(), DType::kF32, 1, 4, 4}, 30.0f);
    CHECK(x[0] == -30.0f);
    CHECK(x[1] == Approx(-30.0 * std::tanh(100.0 / 30)));
    CHECK(x[3] == 30.0f);
    ops->gelu_mul({gate_up.data(), DType::kF32, 1, 4, 4}, {out.data(), DType::kF32, 1, 2, 2});
    CHECK(std::abs(out[0]) < 1e-20f);
    CHECK(out[1] == 2000.0f);
  }
}

}  // namespace
}  // namespace headwater
