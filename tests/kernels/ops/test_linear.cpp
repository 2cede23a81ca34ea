// CpuOps and CudaOps against RefOps: products of every weight format, and the bits of each row.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/device_memory.h"
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
                       const std::vector<float>& x,
                       int64_t m,
                       LinearMode mode = LinearMode::kOverwrite) {
  const std::unique_ptr<Weight> weight = ops.load_weight(parts);
  const int64_t stride = weight->rows + 3;
  std::vector<float> out(static_cast<size_t>(m * stride), kSentinel);
  if (mode == LinearMode::kAdd)
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < weight->rows; ++c) out[r * stride + c] = static_cast<float>(c % 7);
  testing::DeviceMemory memory(ops);
  const Matrix device_out = memory.rows(out, m, weight->rows, stride);
  ops.linear(*weight, memory.rows(x, m), device_out, mode);
  out = memory.get(device_out);
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

// What fused_linear leaves, or the same operations one after another; all but x as `between`.
std::vector<float> layer_product(Ops& ops,
                                 const Stored& stored,
                                 const std::vector<float>& x,
                                 int64_t m,
                                 Gate gate,
                                 bool fused,
                                 DType between = DType::kF32) {
  testing::DeviceMemory memory(ops);
  const auto weight = ops.load_weight({&stored.view, 1});
  const int64_t cols = gate == Gate::kNone ? weight->rows : weight->rows / 2;
  const auto scratch = [&](int64_t columns) {
    const std::vector<float> values(static_cast<size_t>(m * columns), kSentinel);
    return memory.rows_as(between, values, m);
  };
  const FusedLinear args{.x = memory.rows(x, m),
                         .norm = memory.put(Random(5).values(weight->cols, 1.0f)),
                         .eps = 1e-5f,
                         .gate = gate,
                         .out = scratch(cols),
                         .normed = scratch(weight->cols),
                         .product = scratch(weight->rows)};
  if (fused) {
    ops.fused_linear(*weight, args);
    return memory.get(args.out);
  }
  ops.rms_norm(args.x, args.norm, args.eps, args.normed);
  ops.linear(*weight, args.normed, args.product, LinearMode::kOverwrite);
  if (gate == Gate::kNone) return memory.get(args.product);
  if (gate == Gate::kSilu) {
    ops.silu_mul(args.product, args.out);
  } else {
    ops.gelu_mul(args.product, args.out);
  }
  return memory.get(args.out);
}

void check_layer_products(Ops& ops) {
  for (const QuantTraits& traits : quant_formats())
    for (const int64_t cols : {512, 4608})
      for (const int64_t m : {1, 3, 7, 11})
        for (const Gate gate : {Gate::kNone, Gate::kSilu, Gate::kGeluTanh}) {
          const Stored weight(traits.format, 70, cols, 5);
          const auto x = Random(8).values(m * cols, 2.0f);
          CAPTURE(traits.name, cols, m, static_cast<int>(gate));
          CHECK((layer_product(ops, weight, x, m, gate, true) ==
                 layer_product(ops, weight, x, m, gate, false)));
        }
}

TEST_CASE("a product with its norm and gate has the bits of the three operations") {
  ThreadPool pool(2);
  check_layer_products(*make_cpu_ops(pool));
}

TEST_CASE("a product with its norm and gate has the bits of the three operations on the GPU",
          "[cuda]") {
  if (const auto ops = testing::cuda_or_skip()) check_layer_products(*ops);
}

TEST_CASE("a product with its norm and gate has the bits of the three operations on the exact GPU",
          "[cuda]") {
  if (const auto ops = testing::cuda_or_skip({.deterministic = true})) check_layer_products(*ops);
}

// Some rows of F16: what is read and written is f16 where the device wants that, tiles of the
// weight are whole, partial, and shared by a few blocks or by very many.
struct F16Shape {
  int64_t rows, cols;
};
constexpr F16Shape kF16Shapes[] = {{1, 8}, {83, 72}, {128, 64}, {200, 200}, {520, 4096}};

void check_f16_product(Ops& ops, Ops& ref, F16Shape shape, int64_t m, LinearMode mode, DType to) {
  CAPTURE(shape.rows, shape.cols, m, static_cast<int>(mode), static_cast<int>(to));
  const Stored stored(QuantFormat::kF16, shape.rows, shape.cols, 7);
  const auto x = testing::rounded_to_f16(Random(11).values(m * shape.cols, 1.0f));
  const auto before = testing::rounded_to_f16(Random(12).values(m * shape.rows, 0.5f));
  const auto product = [&](Ops& device, DType in, DType out_type) {
    const auto weight = device.load_weight({&stored.view, 1});
    testing::DeviceMemory memory(device, int64_t{64} << 20);
    const Matrix out = memory.rows_as(out_type, before, m);
    device.linear(*weight, memory.rows_as(in, x, m), out, mode);
    return memory.get(out);
  };
  const auto weight = ops.load_weight({&stored.view, 1});
  const DType in = ops.linear_dtype(*weight, m);
  const DType out = in == DType::kF16 ? to : DType::kF32;
  const auto got = product(ops, in, out);
  const auto d = difference(got, product(ref, DType::kF32, DType::kF32));
  CAPTURE(d);
  CHECK(d.nmse < 5e-7);
  CHECK((product(ops, in, out) == got));  // whoever comes last
}

void check_f16_products(Ops& ops, const std::vector<int64_t>& row_counts) {
  ThreadPool pool(4);
  const auto ref = make_ref_ops(pool);
  for (const int64_t m : row_counts)
    for (const F16Shape shape : kF16Shapes)
      for (const LinearMode mode : {LinearMode::kOverwrite, LinearMode::kAdd})
        for (const DType to : {DType::kF32, DType::kF16})
          check_f16_product(ops, *ref, shape, m, mode, to);
}

TEST_CASE("products of some rows with F16 weights agree with RefOps on the GPU", "[cuda]") {
  if (const auto ops = testing::cuda_or_skip())
    check_f16_products(*ops, {5, 8, 9, 16, 17, 33, 63, 64});
}

TEST_CASE("products of many rows with F16 weights agree with RefOps on the GPU", "[cuda][cublas]") {
  if (const auto ops = testing::cuda_or_skip()) check_f16_products(*ops, {65});
}

TEST_CASE("products of some rows with large F16 weights agree with RefOps on the GPU", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ThreadPool pool(4);
  const auto ref = make_ref_ops(pool);
  for (const int64_t m : {8, 64}) {
    check_f16_product(*ops, *ref, {40968, 128}, m, LinearMode::kOverwrite, DType::kF32);
    check_f16_product(*ops, *ref, {4120, 1024}, m, LinearMode::kAdd, DType::kF32);
  }
}

TEST_CASE("gates behind products of some rows agree with RefOps on the GPU", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ThreadPool pool(4);
  const auto ref = make_ref_ops(pool);
  const auto check = [&](QuantFormat format, int64_t rows, int64_t cols, int64_t m, Gate gate) {
    if (cols % quant_traits(format).block_elements != 0) return;
    const Stored stored(format, rows, cols, 5);
    const auto x = Random(8).values(m * cols, 2.0f);
    const auto weight = ops->load_weight({&stored.view, 1});
    CAPTURE(quant_traits(format).name, rows, cols, m, static_cast<int>(gate));
    const auto d =
        difference(layer_product(*ops, stored, x, m, gate, true, ops->linear_dtype(*weight, m)),
                   layer_product(*ref, stored, x, m, gate, true));
    CAPTURE(d);
    CHECK(d.nmse < 2e-6);
  };
  for (const QuantFormat format : {QuantFormat::kF16, QuantFormat::kQ8_0, QuantFormat::kQ4_K})
    for (const int64_t rows : {16, 80, 400, 2064})
      for (const int64_t cols : {64, 200, 1024})
        for (const int64_t m : {5, 8, 16, 33, 64})
          for (const Gate gate : {Gate::kSilu, Gate::kGeluTanh}) check(format, rows, cols, m, gate);
  check(QuantFormat::kQ6_K, 40960, 256, 33, Gate::kSilu);  // more tiles than processors
}

// Outputs of every row-wise operation, in the order of the calls; those that may be f16 as
// `between`.
std::vector<std::vector<float>> element_operations(Ops& ops,
                                                   int64_t cols,
                                                   DType between = DType::kF32) {
  constexpr int64_t kM = 3;
  testing::DeviceMemory memory(ops);
  const auto weight = Random(5).values(cols, 1.0f);
  const auto values = testing::rounded_to_f16(Random(4).values(kM * 2 * cols, 3.0f));
  const Matrix wide = memory.rows(values, kM), gate_up = memory.rows_as(between, values, kM);
  const std::vector<float> nothing(static_cast<size_t>(kM * cols), kSentinel);
  const auto new_out = [&] { return memory.rows(nothing, kM); };
  const auto new_between = [&] { return memory.rows_as(between, nothing, kM); };
  const float* device_weight = memory.put(weight);
  const Matrix normed = new_between(), gated = new_between();
  const Matrix sums = new_out(), gathered = new_out(), embedded = new_out();
  ops.rms_norm(wide.columns(0, cols), device_weight, 1e-5f, normed);
  ops.silu_mul(gate_up, gated);
  StepView step;
  step.num_rows = kM;
  step.num_logit_rows = 2;
  step.logit_rows = memory.put(std::vector<int32_t>{2, 0});
  step.token_ids = memory.put(std::vector<int32_t>{3, 0, 4});
  ops.gather_logit_rows(wide.columns(cols, cols), step, gathered.first_rows(2));
  const Stored table(QuantFormat::kF16, 5, cols, 6);
  const auto embedding = ops.load_weight({&table.view, 1});
  ops.embed(*embedding, step, 2.5f, embedded);
  std::vector<std::vector<float>> outs;
  for (const Matrix& out : {normed, gated, gathered, embedded}) outs.push_back(memory.get(out));
  ops.add_bias(gated, device_weight);
  outs.push_back(memory.get(gated));
  ops.rms_norm(normed, device_weight, 1e-5f, normed);  // in place
  outs.push_back(memory.get(normed));
  ops.gelu_mul(gate_up, gated);
  outs.push_back(memory.get(gated));
  if (cols % 3 == 0) {
    const float* head_weight = memory.put(Random(7).values(cols / 3, 1.0f));
    ops.head_norm(normed, head_weight, 1e-5f, 3);
    outs.push_back(memory.get(normed));
  }
  ops.rms_norm(wide.columns(0, cols), device_weight, 1e-5f, sums);
  ops.add_scaled(embedded, 0.25f, sums);
  outs.push_back(memory.get(sums));
  ops.softcap(sums, 3.0f);
  outs.push_back(memory.get(sums));
  return outs;
}

void check_element_operations(Ops& ops, double tolerance, DType between = DType::kF32) {
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  for (const int64_t cols : {1, 15, 64, 192, 577, 8192, 8196}) {
    const auto expected = element_operations(*ref, cols);
    const auto got = element_operations(ops, cols, between);
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(cols, i);
      CHECK(difference(got[i], expected[i]).nmse < tolerance);
    }
  }
}

TEST_CASE("element operations agree with RefOps") {
  ThreadPool pool(2);
  check_element_operations(*make_cpu_ops(pool), 1e-11);
}

// Each rounding to f16 is by up to 2^-11 of the value, whose square is 2.4e-7.
TEST_CASE("element operations agree with RefOps on the GPU", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  check_element_operations(*ops, 1e-11);
  check_element_operations(*ops, 2.4e-7, DType::kF16);
}

// What only products read, written as f16 by who makes it: the same bits as when the product rounds
// f32 itself. What a product writes as f16 is rounded once more: by 2^-11 of itself, whose square
// is 2.4e-7.
TEST_CASE("f16 between kernels changes no product on the GPU", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  constexpr int64_t kM = 40, kCols = 512;
  for (const QuantFormat format : {QuantFormat::kF16, QuantFormat::kQ8_0, QuantFormat::kQ4_K}) {
    const Stored stored(format, 2 * kCols, kCols, 7);
    const auto weight = ops->load_weight({&stored.view, 1});
    CAPTURE(quant_traits(format).name);
    if (format != QuantFormat::kF16) CHECK(ops->linear_dtype(*weight, 8) == DType::kF32);
    REQUIRE(ops->linear_dtype(*weight, kM) == DType::kF16);
    testing::DeviceMemory memory(*ops);
    auto values = Random(4).values(kM * kCols, 3.0f);
    values[3] = 3e7f;  // alone in its row after the norm, and beyond f16 after its weight
    const Matrix x = memory.rows(values, kM);
    auto norm = Random(5).values(kCols, 1.0f);
    norm[3] = 1e6f;
    const float* norm_weight = memory.put(norm);
    const auto outputs = [&](DType between) {
      const auto zeros = [&](DType dtype, int64_t cols) {
        return memory.rows_as(dtype, std::vector<float>(static_cast<size_t>(kM * cols)), kM);
      };
      const Matrix normed = zeros(between, kCols), gated = zeros(between, kCols);
      const Matrix wide = zeros(DType::kF32, 2 * kCols), out = zeros(DType::kF32, 2 * kCols);
      ops->rms_norm(x, norm_weight, 1e-5f, normed);
      ops->linear(*weight, normed, wide, LinearMode::kOverwrite);
      ops->silu_mul(wide, gated);
      ops->linear(*weight, gated, out, LinearMode::kAdd);
      return std::pair(memory.get(wide), memory.get(out));
    };
    const auto [wide, out] = outputs(DType::kF32);
    const auto [wide16, out16] = outputs(DType::kF16);
    CHECK(same_bits(wide.data(), wide16.data(), static_cast<int64_t>(wide.size())));
    CHECK(same_bits(out.data(), out16.data(), static_cast<int64_t>(out.size())));
    for (const float value : out16) REQUIRE(std::isfinite(value));

    const std::vector<float> nothing(wide.size());
    const Matrix half = memory.rows_as(DType::kF16, nothing, kM), full = memory.rows(nothing, kM);
    ops->linear(*weight, x, half, LinearMode::kOverwrite);
    ops->linear(*weight, x, full, LinearMode::kOverwrite);
    auto got = memory.get(half), expected = memory.get(full);
    for (auto* values_of : {&got, &expected})
      for (float& value : *values_of) value = std::clamp(value, -65504.0f, 65504.0f);
    // Without the row of the spike, which would outweigh the others.
    got.erase(got.begin(), got.begin() + 2 * kCols);
    expected.erase(expected.begin(), expected.begin() + 2 * kCols);
    const auto d = difference(got, expected);
    CAPTURE(d);
    CHECK(d.nmse < 2.4e-7);
  }
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
