// CpuOps and CudaOps against RefOps: products with what stands before and behind them in a layer,
// element operations, and f16 between them.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

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
using testing::same_bits;
using testing::Stored;

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

}  // namespace
}  // namespace headwater
