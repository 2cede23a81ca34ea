// CpuOps and CudaOps against RefOps: products of every weight format, and the bits of each row.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/device_memory.h"
#include "tests/kernels/ops/stored_weight.h"
#include "tests/support/random.h"

namespace headwater {
namespace {

using testing::difference;
using testing::kSentinel;
using testing::Random;
using testing::run;
using testing::same_bits;
using testing::Stored;

// Whole numbers whose largest in every block of 32 is 8191: 14 bits hold them exactly.
std::vector<float> exact_activations(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    x[i] = i % 32 == 5 ? 8191.0f : static_cast<float>(random.below(16383) - 8191);
  return x;
}

// Of the squares of all terms x * w: rounding goes with the terms, whether or not they cancel.
double squares_of_terms(const WeightView& weight, const std::vector<float>& x) {
  std::vector<float> w(static_cast<size_t>(weight.rows * weight.cols));
  const int64_t blocks = weight.rows * weight.cols / quant_traits(weight.format).block_elements;
  quant_traits(weight.format).decode(weight.data, blocks, w.data());
  const auto of_column = [&](const std::vector<float>& values, int64_t col) {
    double sum = 0;
    for (size_t i = static_cast<size_t>(col); i < values.size(); i += weight.cols)
      sum += double{values[i]} * values[i];
    return sum;
  };
  double sum = 0;
  for (int64_t c = 0; c < weight.cols; ++c) sum += of_column(w, c) * of_column(x, c);
  return sum;
}

// nmse, of at least the terms' squares: what the device may lose to its way of multiplying; of
// activations it holds exactly, and of others by block formats and by scalar ones. A term left out
// or counted twice weighs 1 / cols.
struct Tolerance {
  double exact, blocks, scalars;
};

void check_products(Ops& ops,
                    const std::vector<int64_t>& row_counts,
                    int64_t cols,
                    const Tolerance& tolerance) {
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  for (const QuantTraits& traits : quant_formats()) {
    if (cols % traits.block_elements != 0) continue;
    for (const int64_t rows : {1, 16, 83}) {
      for (const int64_t m : row_counts) {
        const Stored weight(traits.format, rows, cols, 7);
        CAPTURE(traits.name, rows, m);
        const auto exact = exact_activations(m * cols, 3);
        const auto d = difference(run(ops, {weight.view}, exact, m),
                                  run(*ref, {weight.view}, exact, m),
                                  squares_of_terms(weight.view, exact));
        CAPTURE(d);
        CHECK(d.nmse < tolerance.exact);

        const auto x = Random(11).values(m * cols, 1.0f);
        const auto rounded = difference(run(ops, {weight.view}, x, m, LinearMode::kAdd),
                                        run(*ref, {weight.view}, x, m, LinearMode::kAdd),
                                        squares_of_terms(weight.view, x));
        CAPTURE(rounded);
        CHECK(rounded.nmse < (traits.block_elements > 1 ? tolerance.blocks : tolerance.scalars));
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

TEST_CASE("linear of every format agrees with RefOps") {
  ThreadPool pool(2);
  check_products(*make_cpu_ops(pool), {1, 3, 13}, 512, {1e-10, 5e-8, 1e-10});
}

// Few rows: block formats on activations of 15 bits, scalar formats in fp32. More go through f16 or
// TF32, which keep 11 significant bits of both factors: a relative error of up to 2^-11 each, so at
// most 5e-7 in the square. Of blocks one row is few, and more where that is asked for.
constexpr Tolerance kFew{1e-10, 1e-8, 1e-10};
constexpr Tolerance kFewScalars{5e-7, 5e-7, 1e-10};
constexpr Tolerance kHalf{5e-7, 5e-7, 5e-7};
constexpr int64_t kOddCols[] = {1504, 2304};  // stages of them that are not whole, and no multiple
                                              // of a cluster's blocks

TEST_CASE("linear of every format agrees with RefOps on the GPU: few rows", "[cuda]") {
  const auto ops = testing::cuda_or_skip(), exact = testing::cuda_or_skip({.deterministic = true});
  if (!ops) return;
  check_products(*exact, {1, 3, 4}, 512, kFew);
  check_products(*ops, {1}, 512, kFew);
  check_products(*ops, {2, 3, 4}, 512, kFewScalars);
  for (const int64_t cols : kOddCols) {
    check_products(*exact, {1, 3}, cols, kFew);
    check_products(*ops, {2, 4}, cols, kFewScalars);
  }
}

TEST_CASE("linear of every format agrees with RefOps on the GPU: some rows", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  check_products(*ops, {5, 8, 9, 32, 33, 64}, 512, kHalf);
}

TEST_CASE("linear of every format agrees with RefOps on the GPU: some rows, odd inputs", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  for (const int64_t cols : kOddCols) check_products(*ops, {6, 40}, cols, kHalf);
}

TEST_CASE("linear of every format agrees with RefOps on the GPU: many rows", "[cuda][cublas]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  check_products(*ops, {65, 130}, 512, kHalf);
  check_products(*ops, {1, 5, 40}, 77, kHalf);  // rows of no multiple of 16 bytes
}

// Several tiles of the decoded weight.
TEST_CASE("a weight larger than the scratch is decoded in tiles on the GPU", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ThreadPool pool(2);
  const Stored weight(QuantFormat::kQ8_0, 1700, 8192, 13);  // 56 MB as f32
  constexpr int64_t kM = 300;
  const auto x = Random(14).values(kM * 8192, 1.0f);
  const auto d =
      difference(run(*ops, {weight.view}, x, kM), run(*make_ref_ops(pool), {weight.view}, x, kM));
  CAPTURE(d);
  CHECK(d.nmse < 5e-7);
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

void check_fused(Ops& ops, int64_t m, double tolerance) {
  ThreadPool pool(2);
  const Stored a(QuantFormat::kQ4_K, 40, 256, 1);
  const Stored b(QuantFormat::kQ6_K, 17, 256, 2);
  const Stored c(QuantFormat::kF16, 33, 256, 3);
  const std::vector<WeightView> parts = {a.view, b.view, c.view};
  const auto x = exact_activations(m * 256, 9);
  CHECK(difference(run(ops, parts, x, m), run(*make_ref_ops(pool), parts, x, m)).nmse < tolerance);
}

TEST_CASE("fused parts of different formats lie side by side") {
  ThreadPool pool(2);
  check_fused(*make_cpu_ops(pool), 5, 1e-10);
}

TEST_CASE("fused parts of different formats lie side by side on the GPU", "[cuda]") {
  const auto ops = testing::cuda_or_skip(), exact = testing::cuda_or_skip({.deterministic = true});
  if (!ops) return;
  check_fused(*exact, 4, 1e-10);
  check_fused(*ops, 1, 1e-10);
  check_fused(*ops, 4, 5e-7);  // the F16 part by few_rows()
  check_fused(*ops, 6, 5e-7);
  check_fused(*ops, 9, 5e-7);
  check_fused(*ops, 64, 5e-7);
}

// Parts of num_rows rows, computed by `several`, against all of them by `single`.
void check_bits(Ops& single, Ops& several, int64_t num_rows) {
  constexpr int64_t kRows = 83;
  constexpr int64_t kCols = 512;
  const auto x = Random(21).values(num_rows * kCols, 1.0f);
  for (const QuantTraits& traits : quant_formats()) {
    const Stored weight(traits.format, kRows, kCols, 5);
    const auto whole = run(single, {weight.view}, x, num_rows);
    CAPTURE(traits.name);
    for (const int64_t m : {1, 2, 6, 11}) {
      if (m > num_rows) continue;
      for (const int64_t first : {int64_t{0}, (num_rows - m) / 2}) {
        const std::vector<float> part(x.begin() + first * kCols, x.begin() + (first + m) * kCols);
        const auto rows = run(several, {weight.view}, part, m);
        CHECK(same_bits(rows.data(), &whole[first * kRows], m * kRows));
      }
    }
    if (several.name() != "cpu") continue;
    testing::for_each_target([&](int64_t target) {
      CAPTURE(hwy::TargetName(target));
      const std::vector<float> part(x.begin(), x.begin() + 3 * kCols);
      const auto rows = run(several, {weight.view}, part, 3);
      CHECK(same_bits(rows.data(), whole.data(), 3 * kRows));
    });
  }
}

TEST_CASE("a row's bits depend on neither rows, threads nor instruction set") {
  ThreadPool one(1);
  ThreadPool three(3);
  check_bits(*make_cpu_ops(one), *make_cpu_ops(three), 75);
}

TEST_CASE("a row's bits do not depend on how many rows there are on the GPU, where it is exact",
          "[cuda]") {
  if (const auto ops = testing::cuda_or_skip({.deterministic = true})) check_bits(*ops, *ops, 75);
}

TEST_CASE("embedding rows of every format are RefOps' on the GPU, bit for bit", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ThreadPool pool(1);
  const auto ref = make_ref_ops(pool);
  constexpr int64_t kCols = 512;
  const std::vector<int32_t> ids = {6, 0, 3};
  for (const QuantTraits& traits : quant_formats()) {
    CAPTURE(traits.name);
    const Stored table(traits.format, 7, kCols, 17);
    const auto rows = [&](Ops& device) {
      testing::DeviceMemory memory(device);
      StepView step;
      step.num_rows = 3;
      step.token_ids = memory.put(ids);
      const Matrix out = memory.rows(std::vector<float>(3 * kCols, kSentinel), 3);
      device.embed(*device.load_weight({&table.view, 1}), step, 1.0f, out);
      return memory.get(out);
    };
    CHECK((rows(*ops) == rows(*ref)));
  }
}

// More than the page-locked slots hold at once: the last blocks take those of the first.
TEST_CASE("weights of many blocks reach the GPU bit for bit", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  constexpr int64_t kCols = 2048, kBytes = int64_t{200} << 20;
  for (const QuantFormat format : {QuantFormat::kF16, QuantFormat::kQ8_0}) {
    const QuantTraits& traits = quant_traits(format);
    CAPTURE(traits.name);
    const int64_t rows = kBytes / row_bytes(format, kCols);
    std::vector<uint64_t> words(static_cast<size_t>(kBytes / 8 + 1));
    Random random(23);
    for (uint64_t& word : words) word = random.next() & 0xBBFFBBFFBBFFBBFF;  // halves below 2
    const WeightView view{format, rows, kCols, words.data()};
    const auto weight = ops->load_weight({&view, 1});
    std::vector<int32_t> ids = {0, static_cast<int32_t>(rows - 1)};
    for (int64_t row = 0; row < rows; row += 211) ids.push_back(static_cast<int32_t>(row));
    const auto count = static_cast<int64_t>(ids.size());
    testing::DeviceMemory memory(*ops);
    StepView step;
    step.num_rows = static_cast<int32_t>(count);
    step.token_ids = memory.put(ids);
    const Matrix out = memory.rows(std::vector<float>(count * kCols, kSentinel), count);
    ops->embed(*weight, step, 1.0f, out);
    const std::vector<float> arrived = memory.get(out);
    std::vector<float> row(kCols);
    for (int64_t i = 0; i < count; ++i) {
      const auto* bytes = reinterpret_cast<const std::byte*>(words.data());
      traits.decode(bytes + ids[static_cast<size_t>(i)] * row_bytes(format, kCols),
                    kCols / traits.block_elements,
                    row.data());
      REQUIRE(same_bits(&arrived[static_cast<size_t>(i * kCols)], row.data(), kCols));
    }
  }
}

}  // namespace
}  // namespace headwater
