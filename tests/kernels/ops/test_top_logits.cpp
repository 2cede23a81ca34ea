// The likeliest tokens of a row: an Ops against top_logits() of the same values.
#include <cmath>
#include <limits>
#include <random>

#include "tests/kernels/device_memory.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> noise(int64_t cols, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> row(static_cast<size_t>(cols));
  for (float& x : row) x = normal(random);
  return row;
}

// may_give_up: more equal values than the device gathers.
void check_row(const TopLogits& got, const std::vector<float>& row, bool may_give_up = false) {
  if (may_give_up && got.count == -1) return;
  const TopLogits expected = top_logits(row);
  REQUIRE(got.count == expected.count);
  for (int32_t i = 0; i < got.count; ++i) {
    CAPTURE(i);
    REQUIRE(got.ids[i] == expected.ids[i]);
    REQUIRE(got.logits[i] == expected.logits[i]);
  }
  if (expected.count == 0) {
    REQUIRE(got.log_sum_exp == -kInf);
  } else {
    REQUIRE(std::abs(got.log_sum_exp - expected.log_sum_exp) <=
            1e-5f * std::max(1.0f, std::abs(expected.log_sum_exp)));
  }
}

void check(Ops& ops) {
  for (const int64_t cols : {1, 127, 129, 1023, 32'000, 128'256}) {
    std::vector<std::vector<float>> rows = {noise(cols, 3, 1),
                                            noise(cols, 0.01f, 2),
                                            noise(cols, 1e30f, 3),
                                            std::vector<float>(static_cast<size_t>(cols), -kInf),
                                            std::vector<float>(static_cast<size_t>(cols), -0.0f),
                                            noise(cols, 3, 4),
                                            noise(cols, 3, 5)};
    for (float& x : rows[5]) x = std::round(4 * x) / 4;  // equals
    for (size_t i = 0; i < rows[6].size(); i += 3)
      rows[6][i] = i % 2 == 0 ? -kInf : std::numeric_limits<float>::quiet_NaN();
    if (cols > 1) rows[6][1] = kInf;
    std::vector<float> values;
    for (const auto& row : rows) {
      values.insert(values.end(), row.begin(), row.end());
      values.insert(values.end(), 3, kInf);  // between rows
    }
    DeviceMemory memory(ops);
    const auto num_rows = static_cast<int64_t>(rows.size());
    const Matrix logits = memory.rows(values, num_rows, cols, cols + 3);
    auto* out = memory.put(std::vector<TopLogits>(rows.size()));
    ops.top_logits(logits, out);
    std::vector<TopLogits> got(rows.size());
    ops.download(got.data(), out, static_cast<int64_t>(got.size() * sizeof(TopLogits)));
    ops.synchronize();
    for (size_t i = 0; i < rows.size(); ++i) {
      CAPTURE(cols, i);
      check_row(got[i], rows[i], i == 4 || i == 5);
    }
  }
}

}  // namespace

TEST_CASE("top_logits: the host's", "[ops][unit]") {
  ThreadPool pool(1);
  check(*make_ref_ops(pool));
}

TEST_CASE("top_logits: CudaOps", "[ops][cuda]") {
  if (const auto ops = cuda_or_skip()) check(*ops);
}
