// CpuOps against RefOps: products of every weight format, and the bits of each row.
#include <catch2/catch.hpp>
#include <cstring>

#include "kernels/ops.h"
#include "tests/kernels/compare.h"
#include "tests/support/quantize.h"
#include "tests/support/random.h"

namespace headwater {
namespace {

using testing::difference;
using testing::Random;

constexpr float kSentinel = -12345.0f;

struct Stored {
  std::string bytes;
  WeightView view;

  Stored(QuantFormat format, int64_t rows, int64_t cols, uint64_t seed) {
    Random random(seed);
    bytes = quant_traits(format).block_elements == 256
                ? testing::random_k_blocks(format, rows * cols, 0.05f, seed)
                : testing::quantize(format, random.values(rows * cols, 0.05f));
    view = {format, rows, cols, bytes.data()};
  }
};

std::vector<float> run(Ops& ops,
                       const std::vector<WeightView>& parts,
                       std::vector<float> x,
                       int64_t m,
                       LinearMode mode = LinearMode::kOverwrite) {
  const std::unique_ptr<Weight> weight = ops.load_weight(parts);
  const int64_t stride = weight->rows + 3;
  std::vector<float> out(static_cast<size_t>(m * stride), kSentinel);
  if (mode == LinearMode::kAdd)
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < weight->rows; ++c) out[r * stride + c] = static_cast<float>(c % 7);
  ops.linear(*weight,
             {x.data(), DType::kF32, m, weight->cols, weight->cols},
             {out.data(), DType::kF32, m, weight->rows, stride},
             mode);
  std::vector<float> dense;
  for (int64_t r = 0; r < m; ++r) {
    dense.insert(dense.end(), &out[r * stride], &out[r * stride] + weight->rows);
    for (int64_t c = weight->rows; c < stride; ++c) REQUIRE(out[r * stride + c] == kSentinel);
  }
  return dense;
}

// Whole numbers whose largest in every block of 32 is 8191: 14 bits hold them exactly.
std::vector<float> exact_activations(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    x[i] = i % 32 == 5 ? 8191.0f : static_cast<float>(random.below(16383) - 8191);
  return x;
}

bool same_bits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

TEST_CASE("linear of every format agrees with RefOps") {
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  const auto cpu = make_cpu_ops(pool);
  for (const QuantTraits& traits : quant_formats()) {
    for (const int64_t rows : {1, 16, 83}) {
      for (const int64_t m : {1, 3, 13}) {
        const int64_t cols = 512;
        const Stored weight(traits.format, rows, cols, 7);
        CAPTURE(traits.name, rows, m);
        const auto exact = exact_activations(m * cols, 3);
        const auto d =
            difference(run(*cpu, {weight.view}, exact, m), run(*ref, {weight.view}, exact, m));
        CAPTURE(d);
        CHECK(d.nmse < 1e-10);

        const auto x = Random(11).values(m * cols, 1.0f);
        const double usual_squares = 0.05 * 0.05 * static_cast<double>(rows * m * cols);
        const auto rounded = difference(run(*cpu, {weight.view}, x, m, LinearMode::kAdd),
                                        run(*ref, {weight.view}, x, m, LinearMode::kAdd),
                                        usual_squares);
        CAPTURE(rounded);
        CHECK(rounded.nmse < (traits.block_elements > 1 ? 5e-8 : 1e-10));
      }
    }
  }
}

TEST_CASE("embedding rows of every format are those of RefOps, to the bit") {
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  const auto cpu = make_cpu_ops(pool);
  constexpr int64_t kRows = 21;
  constexpr int64_t kCols = 512;
  const std::vector<int32_t> tokens = {0, 20, 7, 7, 15};
  StepView step;
  step.num_rows = static_cast<int32_t>(tokens.size());
  step.token_ids = tokens.data();
  for (const QuantTraits& traits : quant_formats()) {
    CAPTURE(traits.name);
    const Stored table(traits.format, kRows, kCols, 13);
    std::vector<float> decoded(kRows * kCols);
    traits.decode(table.view.data, kRows * kCols / traits.block_elements, decoded.data());
    for (Ops* ops : {ref.get(), cpu.get()}) {
      std::vector<float> out(tokens.size() * kCols);
      const auto weight = ops->load_weight({&table.view, 1});
      ops->embed(*weight, step, 2.0f, {out.data(), DType::kF32, step.num_rows, kCols, kCols});
      for (size_t r = 0; r < tokens.size(); ++r)
        for (int64_t c = 0; c < kCols; ++c)
          REQUIRE(out[r * kCols + c] == 2.0f * decoded[tokens[r] * kCols + c]);
    }
  }
}

// Every product of a Q6_K block at its largest, all of one sign: the widest sum of any format.
TEST_CASE("the largest sum of integers fits") {
  ThreadPool pool(1);
  const auto ref = make_ref_ops(pool);
  const auto cpu = make_cpu_ops(pool);
  constexpr int kCols = 256;
  std::string block(static_cast<size_t>(quant_traits(QuantFormat::kQ6_K).block_bytes), '\0');
  for (size_t i = 192; i < 208; ++i) block[i] = '\x80';  // scales -128, quants 0 - 32
  block[209] = '\x3C';                                   // d = 1
  const WeightView view{QuantFormat::kQ6_K, 1, kCols, block.data()};
  const std::vector<float> x(kCols, 8191.0f);
  CHECK(run(*cpu, {view}, x, 1) == run(*ref, {view}, x, 1));
}

TEST_CASE("fused parts of different formats lie side by side") {
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  const auto cpu = make_cpu_ops(pool);
  const Stored a(QuantFormat::kQ4_K, 40, 256, 1);
  const Stored b(QuantFormat::kQ6_K, 17, 256, 2);
  const Stored c(QuantFormat::kF16, 33, 256, 3);
  const std::vector<WeightView> parts = {a.view, b.view, c.view};
  const auto x = exact_activations(5 * 256, 9);
  CHECK(difference(run(*cpu, parts, x, 5), run(*ref, parts, x, 5)).nmse < 1e-10);
}

TEST_CASE("a row's bits depend on neither rows, threads nor instruction set") {
  ThreadPool one(1);
  ThreadPool three(3);
  const auto single = make_cpu_ops(one);
  const auto several = make_cpu_ops(three);
  constexpr int64_t kRows = 83;
  constexpr int64_t kCols = 512;
  constexpr int64_t kM = 75;
  const auto x = Random(21).values(kM * kCols, 1.0f);
  for (const QuantTraits& traits : quant_formats()) {
    const Stored weight(traits.format, kRows, kCols, 5);
    const auto whole = run(*single, {weight.view}, x, kM);
    CAPTURE(traits.name);
    for (const int64_t m : {1, 2, 6, 11}) {
      for (const int64_t first : {0L, 40L}) {
        const std::vector<float> part(x.begin() + first * kCols, x.begin() + (first + m) * kCols);
        const auto rows = run(*several, {weight.view}, part, m);
        CHECK(same_bits(rows.data(), &whole[first * kRows], m * kRows));
      }
    }
    testing::for_each_target([&](int64_t target) {
      CAPTURE(hwy::TargetName(target));
      const std::vector<float> part(x.begin(), x.begin() + 3 * kCols);
      const auto rows = run(*several, {weight.view}, part, 3);
      CHECK(same_bits(rows.data(), whole.data(), 3 * kRows));
    });
  }
}

TEST_CASE("element operations agree with RefOps") {
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  const auto cpu = make_cpu_ops(pool);
  for (const int64_t cols : {1, 15, 64, 577}) {
    constexpr int64_t kM = 3;
    auto x = Random(4).values(kM * 2 * cols, 3.0f);
    const auto weight = Random(5).values(cols, 1.0f);
    std::vector<float> outs[2][2];
    int which = 0;
    for (Ops* ops : {ref.get(), cpu.get()}) {
      for (auto& out : outs[which]) out.resize(static_cast<size_t>(kM * cols));
      const Matrix wide{x.data(), DType::kF32, kM, 2 * cols, 2 * cols};
      ops->rms_norm(wide.columns(0, cols),
                    weight.data(),
                    1e-5f,
                    {outs[which][0].data(), DType::kF32, kM, cols, cols});
      ops->silu_mul(wide, {outs[which][1].data(), DType::kF32, kM, cols, cols});
      ++which;
    }
    for (int i = 0; i < 2; ++i) CHECK(difference(outs[1][i], outs[0][i]).nmse < 1e-11);
  }
}

}  // namespace
}  // namespace headwater
