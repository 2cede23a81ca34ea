// CpuOps and CudaOps against RefOps: paged attention over shuffled, NaN-filled pages, and the bits
// of each row.
#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <numeric>

#include "kernels/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/device_memory.h"
#include "tests/kernels/ops/attention_cases.h"
#include "tests/support/random.h"

namespace headwater {
namespace {

using testing::attention_cases;
using testing::attention_shapes;
using testing::AttentionCase;
using testing::AttentionFeeder;
using testing::describe;
using testing::difference;
using testing::Random;

struct Tolerance {
  double f16 = 1e-10, bf16 = 1e-10;  // nmse of outputs, by the format of the pages
  double lse = 1e-4;                 // largest difference, of pages of 16 bits
  double f32 = 1e-10;
};
// Tensor cores: queries and weights of the softmax are rounded to the format of the pages, by up to
// 2^-12 (f16) or 2^-9 (bf16) of themselves; keys may differ in sign, so that sums magnify it.
// RefOps on queries rounded to bf16 is up to 0.0204 away in the log of the sum (head size 256
// below).
constexpr Tolerance kTensorCores{2e-6, 1e-4, 2.5e-2};

void check_agreement(Ops& ops,
                     const AttentionCase& c,
                     const Tolerance& tolerance,
                     bool rotates = true,
                     DType activations = DType::kF32) {
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  const int32_t page = c.page_tokens;
  const std::vector<int32_t> lengths = {1, page - 1, page, page + 1, 203};
  const std::vector<int32_t> chunks = {1, 1, 5, 64, 37};
  INFO(describe(c));
  AttentionFeeder oracle(*ref, c, lengths, 1);
  AttentionFeeder device(ops, c, lengths, 1, activations);
  if (!rotates) oracle.rotate_nothing();
  if (!rotates) device.rotate_nothing();
  const auto expected = oracle.feed(chunks);
  const auto got = device.feed(chunks);
  for (size_t s = 0; s < lengths.size(); ++s) {
    const auto d = difference(got[s], expected[s]);
    const auto lse = difference(device.lse()[s], oracle.lse()[s]);
    INFO("sequence " << s << ": " << d << "; log of the sum: " << lse);
    // fp32 against fp32 on the same 16-bit keys, or what the tensor cores round
    CHECK(d.nmse < (c.format == DType::kF32   ? tolerance.f32
                    : c.format == DType::kF16 ? tolerance.f16
                                              : tolerance.bf16));
    const bool exact = c.format == DType::kF32 && activations == DType::kF32;
    CHECK(lse.max_abs < (exact ? 1e-4 : tolerance.lse));
  }
}
void check_agreement(Ops& ops, const Tolerance& tolerance = {}) {
  for (const AttentionCase& c : attention_cases()) check_agreement(ops, c, tolerance);
}
void check_shapes(Ops& ops, const Tolerance& tolerance = {}) {
  for (const AttentionCase& c : attention_shapes()) check_agreement(ops, c, tolerance, false);
}

// Rows decoded one by one on `single` are those that `several` computes otherwise.
void check_bits(Ops& single, Ops& several) {
  for (const AttentionCase& c : attention_cases()) {
    INFO(describe(c));
    AttentionFeeder decoder(single, c, {203}, 1);
    const auto decoded = decoder.feed({1});
    for (const int32_t chunk : {7, 64, 203}) {
      AttentionFeeder feeder(several, c, {203}, 2);
      CHECK((feeder.feed({chunk}) == decoded));
      CHECK((feeder.lse() == decoder.lse()));
      CHECK((AttentionFeeder(several, c, {203, 90}, 3).feed({chunk, 1})[0] == decoded[0]));
    }
    if (several.name() != "cpu") continue;
    testing::for_each_target([&](int64_t target) {
      INFO(hwy::TargetName(target));
      CHECK((AttentionFeeder(several, c, {203}, 4).feed({50}) == decoded));
    });
  }
}

// RazorAttention's identities: what is folded counts with its full weight, and less only by how far
// its keys lie from their mean.
void check_folding(Ops& ops) {
  AttentionCase dense{{4, 2, 64}, DType::kF32, 16, 16};
  dense.block = 16;
  AttentionCase folded = dense;
  folded.window = 50;
  folded.compensates = true;
  const auto run = [&](const AttentionCase& c, bool equal_keys) {
    AttentionFeeder feeder(ops, c, {300}, 1);
    if (equal_keys) feeder.make_equal_keys();
    feeder.make_values_ones();
    return feeder.feed({64})[0];
  };
  CHECK(difference(run(folded, true), run(dense, true)).nmse < 1e-10);
  // With values 1 for the folded range and 0 elsewhere the output is the weight of that range.
  const auto weight = [&](const AttentionCase& c) {
    AttentionFeeder feeder(ops, c, {300}, 1);
    feeder.make_values_range(16, 240);  // what the row at 299 folds
    const std::vector<float> out = feeder.feed({300})[0];
    return std::vector<float>(out.end() - 4 * 64, out.end());
  };
  const std::vector<float> all = weight(dense), mean = weight(folded);
  for (size_t i = 0; i < all.size(); ++i) {
    CHECK(mean[i] <= all[i] * 1.00001f);
    CHECK(mean[i] > 0.05f * all[i]);
  }
}

void check_segments(Ops& ops, Ops& split) {
  ThreadPool pool(3);
  const auto ref = make_ref_ops(pool);
  for (const AttentionCase& c :
       {AttentionCase{{3, 1, 64}, DType::kF16, 16},
        AttentionCase{{3, 1, 32}, DType::kF16, 32, 4, 1100},
        AttentionCase{{2, 1, 32}, DType::kF16, 16, 4, 300},
        AttentionCase{{3, 1, 32}, DType::kF16, 16, 16, 300, 0, false, false, 64, 0, true},
        AttentionCase{{3, 1, 32}, DType::kF16, 16, 0, 300, 0, false, false, 64, 7},
        AttentionCase{{2, 1, 32}, DType::kF16, 16, 0, 0, 0, false, true}}) {
    INFO(describe(c));
    constexpr int32_t kLength = 2100;
    const auto whole = AttentionFeeder(ops, c, {kLength}, 1).feed({700});
    CHECK((AttentionFeeder(split, c, {kLength}, 2).feed({3}) == whole));
    const auto d = difference(whole[0], AttentionFeeder(*ref, c, {kLength}, 1).feed({700})[0]);
    INFO(d);
    CHECK(d.nmse < 1e-10);
  }
}

constexpr CudaOptions kDeterministic{.deterministic = true};

// The GPU's general kernel splits keys over blocks once it knows how long sequences get.
std::unique_ptr<Ops> splitting_cuda_ops() {
  auto ops = testing::cuda_or_skip(kDeterministic);
  if (ops) ops->reserve(4096);
  return ops;
}

TEST_CASE("attention agrees with RefOps: ragged mixed batches, holes, selections") {
  ThreadPool pool(2);
  check_agreement(*make_cpu_ops(pool));
}

TEST_CASE("attention agrees with RefOps on the GPU, keys split over blocks or not", "[cuda]") {
  const auto ops = testing::cuda_or_skip(kDeterministic);
  if (!ops) return;
  check_agreement(*ops);
  check_agreement(*splitting_cuda_ops());
}

TEST_CASE("attention on the GPU's tensor cores agrees with RefOps", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ops->reserve(4096);
  check_agreement(*ops, kTensorCores);
}

TEST_CASE("every group size, head size and page format agrees with RefOps") {
  ThreadPool pool(2);
  check_shapes(*make_cpu_ops(pool));
}

TEST_CASE("every group size, head size and page format agrees with RefOps on the GPU", "[cuda]") {
  if (const auto ops = splitting_cuda_ops()) check_shapes(*ops);
}

TEST_CASE("every group size, head size and page format on the GPU's tensor cores", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ops->reserve(4096);
  check_shapes(*ops, kTensorCores);
}

// Rounded before and after the rotation, by up to 2^-12 of themselves each time.
TEST_CASE("attention of f16 activations on the GPU agrees with RefOps", "[cuda]") {
  for (const bool deterministic : {true, false}) {
    CAPTURE(deterministic);
    const auto ops = testing::cuda_or_skip({.deterministic = deterministic});
    if (!ops) return;
    ops->reserve(4096);
    for (const AttentionCase& c : attention_cases())
      check_agreement(*ops, c, {4e-6, 1e-4, 2.5e-2, 4e-6}, true, DType::kF16);
  }
}

TEST_CASE("long sequences on the GPU's tensor cores: decode in splits, prefill in tiles",
          "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ops->reserve(8192);
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  for (const AttentionCase& c :
       {AttentionCase{{8, 2, 128}, DType::kF16, 16},
        AttentionCase{{14, 2, 64}, DType::kBF16, 64},
        AttentionCase{{18, 2, 80}, DType::kF16, 32},
        AttentionCase{{4, 1, 256}, DType::kF16, 16, 100, 700},
        AttentionCase{{6, 2, 96}, DType::kF16, 16, 16, 300, 0, false, false, 64, 0, true},
        AttentionCase{{3, 1, 64}, DType::kF16, 16, 0, 300, 30.0f, false, true, 64, 7},
        AttentionCase{{6, 3, 32}, DType::kBF16, 16, 4, 300}}) {
    INFO(describe(c));
    constexpr int32_t kLength = 1100;
    const double tolerance = c.format == DType::kF16 ? 2e-6 : 1e-4;
    const auto expected = AttentionFeeder(*ref, c, {kLength}, 1).feed({700})[0];
    const auto prefilled =
        difference(AttentionFeeder(*ops, c, {kLength}, 2).feed({700})[0], expected);
    CHECK(prefilled.nmse < tolerance);
    // One row at a time behind a prefill, in a batch of two.
    const std::vector<int32_t> lengths = {kLength, kLength};
    const auto several = AttentionFeeder(*ops, c, lengths, 3).feed({500, 333});
    const auto reference = AttentionFeeder(*ref, c, lengths, 1).feed({500, 500});
    for (size_t s = 0; s < lengths.size(); ++s)
      CHECK(difference(several[s], reference[s]).nmse < tolerance);
    // One row beside a prefill.
    const std::vector<int32_t> unequal = {500, kLength};
    const auto mixed = AttentionFeeder(*ops, c, unequal, 3).feed({499, 600});
    const auto apart = AttentionFeeder(*ref, c, unequal, 1).feed({500, 600});
    for (size_t s = 0; s < unequal.size(); ++s)
      CHECK(difference(mixed[s], apart[s]).nmse < tolerance);
    const auto decoded = difference(AttentionFeeder(*ops, c, {400}, 4).feed({1})[0],
                                    AttentionFeeder(*ref, c, {400}, 4).feed({400})[0]);
    INFO(prefilled << "; " << decoded);
    CHECK(decoded.nmse < tolerance);
  }
}

TEST_CASE("lists of several lengths on the GPU are split by length", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ops->reserve(1 << 18);
  ThreadPool pool(4);
  const auto ref = make_ref_ops(pool);
  AttentionCase c{{3, 3, 32}, DType::kF16, 16};
  c.num_groups = 2;
  const std::vector<int32_t> lengths = {4500, 70};
  const auto expected = AttentionFeeder(*ref, c, lengths, 1).feed({4500, 70});
  AttentionFeeder feeder(*ops, c, lengths, 2);
  const auto got = feeder.feed({4498, 68});
  for (size_t s = 0; s < lengths.size(); ++s) CHECK(difference(got[s], expected[s]).nmse < 2e-6);
}

TEST_CASE("prefill that fills half of the GPU agrees with RefOps", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ThreadPool pool(4);
  const auto ref = make_ref_ops(pool);
  for (const AttentionCase& c :
       {AttentionCase{{32, 8, 128}, DType::kF16, 16},
        AttentionCase{{32, 16, 128}, DType::kBF16, 48, 0, 0, 0, false, true},
        AttentionCase{{48, 16, 64}, DType::kF16, 32, 20, 130},
        AttentionCase{{48, 16, 64}, DType::kBF16, 16, 16, 100, 0, false, false, 64, 0, true},
        AttentionCase{{32, 8, 128}, DType::kF16, 16, 16, 60, 0, false, true, 48, 0, true},
        AttentionCase{{32, 16, 128}, DType::kF16, 16, 0, 33, 0, false, false, 32, 5}}) {
    INFO(describe(c));
    const std::vector<int32_t> lengths = {1, 300, 17, 130}, chunks = {1, 170, 17, 130};
    AttentionFeeder oracle(*ref, c, lengths, 1);
    const auto expected = oracle.feed(chunks);
    for (const DType activations : {DType::kF32, DType::kF16}) {
      AttentionFeeder device(*ops, c, lengths, 2, activations);
      const auto got = device.feed(chunks);
      for (size_t s = 0; s < lengths.size(); ++s) {
        const auto d = difference(got[s], expected[s]);
        const auto lse = difference(device.lse()[s], oracle.lse()[s]);
        INFO(dtype_name(activations) << " sequence " << s << ": " << d << "; lse: " << lse);
        CHECK(d.nmse < (c.format == DType::kF16 ? 2e-6 : 1e-4));
        CHECK(lse.max_abs < 2e-2);
      }
    }
  }
}

TEST_CASE(
    "a query row's bits depend on neither chunks, batch, pages, threads nor instruction set") {
  ThreadPool one(1);
  ThreadPool three(3);
  check_bits(*make_cpu_ops(one), *make_cpu_ops(three));
}

TEST_CASE("a query row's bits depend on neither chunks, batch, pages nor blocks of the GPU",
          "[cuda]") {
  const auto split = splitting_cuda_ops();
  if (!split) return;
  check_bits(*split, *testing::cuda_or_skip(kDeterministic));
}

TEST_CASE("folded tokens: equal keys fold without a trace, others never gain weight") {
  ThreadPool pool(2);
  check_folding(*make_ref_ops(pool));
  check_folding(*make_cpu_ops(pool));
}

TEST_CASE("folded tokens on the GPU", "[cuda]") {
  if (const auto ops = splitting_cuda_ops()) check_folding(*ops);
}

TEST_CASE("split over segments or not, the bits are the same") {
  ThreadPool pool(3);
  const auto ops = make_cpu_ops(pool);
  check_segments(*ops, *ops);
}

TEST_CASE("split over blocks of the GPU or not, the bits are the same", "[cuda]") {
  const auto split = splitting_cuda_ops();
  if (!split) return;
  check_segments(*testing::cuda_or_skip(kDeterministic), *split);
}

TEST_CASE("pages move and tables change as on the host", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  for (const int32_t granules : {3, 133}) {  // less than a block of threads copies, and more
    const int64_t page_bytes = granules * kPageGranuleBytes;
    constexpr int32_t kPages = 200;
    const std::vector<float> values =
        Random(1).values(kPages * page_bytes / int64_t{sizeof(float)}, 1.0f);
    testing::DeviceMemory memory(*ops);
    const Matrix arena = memory.rows(values, kPages);
    std::vector<PageId> from, to;
    for (int32_t i = 0; i < kPages / 2; ++i) {
      from.push_back(granules * (2 * i));
      to.push_back(granules * (2 * ((i + 7) % (kPages / 2)) + 1));
    }
    std::vector<float> expected = values;
    ThreadPool pool(1);
    make_ref_ops(pool)->copy_pages(
        reinterpret_cast<std::byte*>(expected.data()), page_bytes, from, to);
    ops->copy_pages(static_cast<std::byte*>(arena.data), page_bytes, from, to);
    CHECK((memory.get(arena) == expected));
  }

  testing::DeviceMemory memory(*ops);
  std::vector<int32_t> table(150'000, 0);
  std::vector<TableEntry> entries;
  for (int32_t i = 0; i < 150'000; i += 2) entries.push_back({i, 3 * i + 1});
  int32_t* device_table = memory.put(table);
  ops->write_table(device_table, memory.put(entries), std::ssize(entries));
  for (const TableEntry& entry : entries) table[static_cast<size_t>(entry.offset)] = entry.page;
  std::vector<int32_t> got(table.size());
  ops->download(got.data(), device_table, static_cast<int64_t>(got.size() * sizeof(int32_t)));
  ops->synchronize();
  CHECK((got == table));
}

}  // namespace
}  // namespace headwater
