// CpuOps and CudaOps against RefOps: paged attention over shuffled, NaN-filled pages, and the bits
// of each row.
#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <numeric>

#include "kernels/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/device_memory.h"
#include "tests/support/random.h"

namespace headwater {
namespace {

using testing::difference;
using testing::Random;

struct Case {
  HeadShape heads;
  DType format = DType::kF32;
  int32_t page_tokens = 16;
  int32_t sinks = 0;
  int32_t window = 0;  // 0: everything
  float softcap = 0;
  bool selects = false;
  bool virtual_tokens = false;
  int32_t block = 1;
  int32_t shard_stride = 0;
  bool compensates = false;
  int32_t num_groups = 1;  // all heads are in the first
};

// Sequences fed position by position, in chunks, through rope_append_kv and attention of an Ops.
class Feeder {
 public:
  Feeder(Ops& ops,
         const Case& c,
         std::vector<int32_t> lengths,
         uint64_t page_seed,
         DType activations = DType::kF32)
      : ops_(ops), case_(c), activations_(activations), lengths_(std::move(lengths)), memory_(ops) {
    shape_ = {c.format, c.heads.head_dim, c.page_tokens, 0};
    group_ = {shape_, c.heads.num_kv_heads, c.sinks, c.block, c.shard_stride, 1};
    for (int32_t h = 0; h < c.heads.num_kv_heads; ++h) slots_.push_back({0, h});
    // Records take whole pages here; the table has one length for all sequences.
    const int32_t longest = *std::max_element(lengths_.begin(), lengths_.end());
    const int64_t page_entries = int64_t{pages_of(longest)} * c.heads.num_kv_heads;
    if (c.compensates) group_.record_begin = page_entries;
    const int64_t entries =
        page_entries + (c.compensates ? (longest / c.block + 1) * c.heads.num_kv_heads : 0);
    for (size_t s = 0; s < lengths_.size(); ++s)
      for (int32_t g = 0; g < c.num_groups; ++g)
        table_begin_.push_back(static_cast<int64_t>(s) * entries);
    const int64_t pages = static_cast<int64_t>(lengths_.size()) * entries;
    std::vector<int32_t> order(static_cast<size_t>(2 * pages));
    std::iota(order.begin(), order.end(), 0);
    Random random(page_seed);
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
    const int64_t granules = shape_.page_bytes() / kPageGranuleBytes;
    for (int64_t i = 0; i < pages; ++i)
      table_.push_back(static_cast<int32_t>(order[static_cast<size_t>(i)] * granules));
    arena_ = ops.allocate(2 * pages * shape_.page_bytes());
    poison(0, arena_.bytes());
    for (size_t s = 0; s < lengths_.size(); ++s) {
      const int64_t n = lengths_[s];
      const int64_t kv_values = n * c.heads.num_kv_heads * c.heads.head_dim;
      const int64_t q_values = n * c.heads.num_heads * c.heads.head_dim;
      q_.push_back(testing::rounded_to_f16(Random(100 + s).values(q_values, 1.5f)));
      k_.push_back(testing::rounded_to_f16(Random(200 + s).values(kv_values, 1.0f)));
      v_.push_back(testing::rounded_to_f16(Random(300 + s).values(kv_values, 1.0f)));
      out_.emplace_back(q_.back().size(), 0.0f);
      lse_.emplace_back(static_cast<size_t>(n * c.heads.num_heads), 0.0f);
    }
  }

  void rotate_nothing() { same_angle_ = true; }
  // Without rotation-free keys RoPE would make equal inputs differ: all positions get one angle.
  void make_equal_keys() {
    rotate_nothing();
    for (std::vector<float>& k : k_) {
      const size_t cols = static_cast<size_t>(case_.heads.num_kv_heads) * shape_.head_dim;
      for (size_t i = cols; i < k.size(); ++i) k[i] = k[i - cols];
    }
  }
  void make_values_ones() {
    for (std::vector<float>& v : v_)
      for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i % 7);
  }
  // 1 at positions [begin, end), 0 elsewhere.
  void make_values_range(int32_t begin, int32_t end) {
    const size_t cols = static_cast<size_t>(case_.heads.num_kv_heads) * shape_.head_dim;
    for (std::vector<float>& v : v_)
      for (size_t i = 0; i < v.size(); ++i)
        v[i] = i / cols >= static_cast<size_t>(begin) && i / cols < static_cast<size_t>(end);
  }

  // Sequence s takes part in a step with its next chunk rows, until all are through.
  std::vector<std::vector<float>> feed(const std::vector<int32_t>& chunks) {
    std::vector<int32_t> done(lengths_.size(), 0);
    while (done != lengths_) {
      std::vector<int32_t> counts;
      for (size_t s = 0; s < lengths_.size(); ++s)
        counts.push_back(std::min(chunks[s], lengths_[s] - done[s]));
      step(done, counts);
      for (size_t s = 0; s < lengths_.size(); ++s) done[s] += counts[s];
    }
    return out_;
  }
  // Of what was fed, [sequence][position, head].
  const std::vector<std::vector<float>>& lse() const { return lse_; }

 private:
  void poison(int64_t begin, int64_t bytes) {  // NaN in every format
    const std::string nan(static_cast<size_t>(bytes), '\xFF');
    ops_.upload(arena_.data() + begin, nan.data(), bytes);
  }

  int32_t pages_of(int32_t length) const {
    return (length + case_.page_tokens - 1) / case_.page_tokens;
  }

  int32_t window_start(int32_t position) const {
    if (case_.window == 0) return 0;
    return std::max(0, position + 1 - case_.window) / case_.block * case_.block;
  }

  // Pages that no row of the step sees are holes, and their bytes are NaN for good.
  std::vector<int32_t> table_with_holes(const std::vector<int32_t>& done) {
    std::vector<int32_t> table = table_;
    if (case_.window == 0) return table;
    for (size_t s = 0; s < lengths_.size(); ++s) {
      const auto punch = [&](int64_t row) {
        for (int32_t h = 0; h < group_.num_heads; ++h) {
          const int64_t begin = table_begin_[s * static_cast<size_t>(case_.num_groups)];
          int32_t& id = table[static_cast<size_t>(begin + row * group_.num_heads + h)];
          poison(id * kPageGranuleBytes, shape_.page_bytes());
          id = kNoPage;
        }
      };
      const auto visible = [&](int32_t p) {
        return p >= window_start(done[s]) || group_.permanent(p);
      };
      for (int32_t page = 0; page < pages_of(lengths_[s]); ++page) {
        const int32_t first = page * case_.page_tokens;
        bool needed = false;
        for (int32_t p = first; p < first + case_.page_tokens; ++p) needed = needed || visible(p);
        if (needed) continue;
        punch(page);
        if (case_.compensates && first % case_.block == 0)
          punch(group_.record_begin / group_.num_heads + first / case_.block);
      }
    }
    return table;
  }

  void step(const std::vector<int32_t>& done, const std::vector<int32_t>& counts) {
    const HeadShape& heads = case_.heads;
    const int64_t q_cols = int64_t{heads.num_heads} * heads.head_dim;
    const int64_t kv_cols = int64_t{heads.num_kv_heads} * heads.head_dim;
    std::vector<int32_t> positions, row_seq, row_begin = {0}, starts;
    std::vector<float> q, k, v;
    for (size_t s = 0; s < counts.size(); ++s) {
      for (int32_t i = 0; i < counts[s]; ++i) {
        positions.push_back(done[s] + i);
        row_seq.push_back(static_cast<int32_t>(s));
        starts.push_back(window_start(done[s] + i));
      }
      row_begin.push_back(static_cast<int32_t>(positions.size()));
      q.insert(q.end(), &q_[s][0] + done[s] * q_cols, &q_[s][0] + (done[s] + counts[s]) * q_cols);
      k.insert(k.end(), &k_[s][0] + done[s] * kv_cols, &k_[s][0] + (done[s] + counts[s]) * kv_cols);
      v.insert(v.end(), &v_[s][0] + done[s] * kv_cols, &v_[s][0] + (done[s] + counts[s]) * kv_cols);
    }
    const std::vector<int32_t> table = table_with_holes(done);
    StepView view;
    view.num_rows = static_cast<int32_t>(positions.size());
    view.num_seqs = static_cast<int32_t>(counts.size());
    memory_.reset();
    view.positions = memory_.put(positions);
    view.row_seq = memory_.put(row_seq);
    view.row_begin = memory_.put(row_begin);
    view.pages = {arena_.data(),
                  memory_.put(table),
                  memory_.put(table_begin_),
                  memory_.put(std::vector(static_cast<size_t>(case_.num_groups), group_)),
                  memory_.put(slots_),
                  memory_.put(starts),
                  case_.num_groups};
    const int64_t rows = view.num_rows;
    const Matrix q_rows = memory_.rows_as(activations_, q, rows);
    RopeSpec rope;
    rope.rotary_dim = heads.head_dim;
    for (int32_t i = 0; i < heads.head_dim / 2; ++i)
      rope.inv_freq.push_back(same_angle_ ? 0.0 : 1.0 / (1 + i));
    const std::vector<float> nothing(static_cast<size_t>(rows * q_cols), 0.0f);
    const Matrix angle_rows = memory_.rows(nothing, rows, heads.head_dim, heads.head_dim);
    ops_.rope_angles(rope, view, angle_rows);
    ops_.rope_append_kv(0,
                        heads,
                        rope,
                        view,
                        angle_rows,
                        q_rows,
                        memory_.rows_as(activations_, k, rows),
                        memory_.rows_as(activations_, v, rows));

    view.pages.compensates = case_.compensates;
    view.pages.format = case_.format;
    if (case_.compensates) ops_.fold_kv(0, heads, view);

    // One list per row and head: every third page, and the row's own.
    std::vector<int32_t> blocks(static_cast<size_t>(rows));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::vector<int32_t> begin = {0}, pages;
    std::vector<float> bias;
    for (int64_t r = 0; r < rows; ++r) {
      for (int32_t h = 0; h < heads.num_kv_heads; ++h) {
        const int32_t own = positions[static_cast<size_t>(r)] / case_.page_tokens;
        for (int32_t page = 0; page <= own; ++page) {
          if (page % 3 != h % 3 && page != own) continue;
          pages.push_back(page);
          bias.push_back(0.1f * static_cast<float>(page % 5));
        }
        begin.push_back(static_cast<int32_t>(pages.size()));
      }
    }
    const PageSelection selection{
        memory_.put(blocks), memory_.put(begin), memory_.put(pages), memory_.put(bias)};

    constexpr int32_t kVirtual = 3;
    std::vector<int32_t> virtual_begin = {0};
    for (int32_t i = 0; i < view.num_seqs * heads.num_kv_heads; ++i)
      virtual_begin.push_back(virtual_begin.back() + kVirtual);
    const auto virtual_k = Random(7).values(virtual_begin.back() * heads.head_dim, 1.0f);
    const auto virtual_v = Random(8).values(virtual_begin.back() * heads.head_dim, 1.0f);
    const auto virtual_bias = Random(9).values(virtual_begin.back(), 1.0f);
    const VirtualTokens virtuals{memory_.put(virtual_begin),
                                 memory_.put(virtual_k),
                                 memory_.put(virtual_v),
                                 memory_.put(virtual_bias)};

    AttentionArgs args;
    args.heads = heads;
    args.scale = 0.125f;
    args.softcap = case_.softcap;
    args.q = q_rows;
    args.out = memory_.rows_as(activations_, nothing, rows);
    args.lse = memory_.rows(nothing, rows, heads.num_heads, heads.num_heads);
    args.selection = case_.selects ? &selection : nullptr;
    args.virtual_tokens = case_.virtual_tokens ? &virtuals : nullptr;
    ops_.attention(args, view);
    const std::vector<float> out = memory_.get(args.out), lse = memory_.get(args.lse);
    for (size_t s = 0; s < counts.size(); ++s) {
      std::copy_n(
          &out[0] + row_begin[s] * q_cols, counts[s] * q_cols, &out_[s][0] + done[s] * q_cols);
      std::copy_n(&lse[0] + row_begin[s] * heads.num_heads,
                  counts[s] * heads.num_heads,
                  &lse_[s][0] + done[s] * heads.num_heads);
    }
  }

  Ops& ops_;
  Case case_;
  DType activations_;
  bool same_angle_ = false;
  std::vector<int32_t> lengths_;
  PageShape shape_;
  KvGroupShape group_;
  std::vector<KvHeadSlot> slots_;
  std::vector<int64_t> table_begin_;
  std::vector<int32_t> table_;
  Buffer arena_;
  testing::DeviceMemory memory_;
  std::vector<std::vector<float>> q_, k_, v_, out_, lse_;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {{9, 3, 64}, DType::kF16, 16},
      {{2, 2, 80}, DType::kF32, 32},
      {{12, 2, 16}, DType::kBF16, 48},
      {{7, 1, 128}, DType::kF16, 16},
      {{8, 1, 96}, DType::kF32, 64},
      {{2, 1, 256}, DType::kF16, 128, 0, 0, 20.0f},
      {{3, 1, 64}, DType::kF16, 16, 4, 40},
      {{6, 2, 32}, DType::kF32, 32, 20, 100},
      {{3, 3, 64}, DType::kF16, 16, 0, 0, 0, true},
      {{6, 3, 64}, DType::kF16, 48, 4, 130, 0, true, true},
      {{4, 2, 64}, DType::kF16, 16, 0, 0, 0, false, true},
      {{6, 2, 64}, DType::kF16, 16, 16, 40, 0, false, false, 32, 0, true},
      {{4, 4, 32}, DType::kF32, 32, 0, 50, 0, false, false, 32, 0, true},
      {{3, 1, 80}, DType::kBF16, 16, 48, 20, 30.0f, false, true, 16, 0, true},
      {{4, 2, 64}, DType::kF16, 16, 0, 33, 0, false, false, 32, 3},
      {{2, 1, 64}, DType::kF32, 48, 4, 65, 0, false, false, 64, 2},
  };
  return all;
}

// Every group size with every head size and page format. Fed without rotation: where the last bit
// of an angle differs, a key now and then rounds to its neighbour, 1 / 256 away in bf16.
std::vector<Case> shapes() {
  std::vector<Case> all;
  for (const DType format : {DType::kF32, DType::kF16, DType::kBF16})
    for (const int32_t group : {1, 3, 6, 7, 8})
      for (const int32_t head_dim : {64, 80, 96, 128, 256})
        all.push_back({{2 * group, 2, head_dim}, format, 16});
  return all;
}

std::string describe(const Case& c) {
  return "heads " + std::to_string(c.heads.num_heads) + "/" + std::to_string(c.heads.num_kv_heads) +
         " dim " + std::to_string(c.heads.head_dim) + " " + dtype_name(c.format) + " page " +
         std::to_string(c.page_tokens) + " window " + std::to_string(c.window) + " block " +
         std::to_string(c.block);
}

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
                     const Case& c,
                     const Tolerance& tolerance,
                     bool rotates = true,
                     DType activations = DType::kF32) {
  ThreadPool pool(2);
  const auto ref = make_ref_ops(pool);
  const int32_t page = c.page_tokens;
  const std::vector<int32_t> lengths = {1, page - 1, page, page + 1, 203};
  const std::vector<int32_t> chunks = {1, 1, 5, 64, 37};
  INFO(describe(c));
  Feeder oracle(*ref, c, lengths, 1);
  Feeder device(ops, c, lengths, 1, activations);
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
  for (const Case& c : cases()) check_agreement(ops, c, tolerance);
}
void check_shapes(Ops& ops, const Tolerance& tolerance = {}) {
  for (const Case& c : shapes()) check_agreement(ops, c, tolerance, false);
}

// Rows decoded one by one on `single` are those that `several` computes otherwise.
void check_bits(Ops& single, Ops& several) {
  for (const Case& c : cases()) {
    INFO(describe(c));
    Feeder decoder(single, c, {203}, 1);
    const auto decoded = decoder.feed({1});
    for (const int32_t chunk : {7, 64, 203}) {
      Feeder feeder(several, c, {203}, 2);
      CHECK((feeder.feed({chunk}) == decoded));
      CHECK((feeder.lse() == decoder.lse()));
      CHECK((Feeder(several, c, {203, 90}, 3).feed({chunk, 1})[0] == decoded[0]));
    }
    if (several.name() != "cpu") continue;
    testing::for_each_target([&](int64_t target) {
      INFO(hwy::TargetName(target));
      CHECK((Feeder(several, c, {203}, 4).feed({50}) == decoded));
    });
  }
}

// RazorAttention's identities: what is folded counts with its full weight, and less only by how far
// its keys lie from their mean.
void check_folding(Ops& ops) {
  Case dense{{4, 2, 64}, DType::kF32, 16, 16};
  dense.block = 16;
  Case folded = dense;
  folded.window = 50;
  folded.compensates = true;
  const auto run = [&](const Case& c, bool equal_keys) {
    Feeder feeder(ops, c, {300}, 1);
    if (equal_keys) feeder.make_equal_keys();
    feeder.make_values_ones();
    return feeder.feed({64})[0];
  };
  CHECK(difference(run(folded, true), run(dense, true)).nmse < 1e-10);
  // With values 1 for the folded range and 0 elsewhere the output is the weight of that range.
  const auto weight = [&](const Case& c) {
    Feeder feeder(ops, c, {300}, 1);
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
  for (const Case& c : {Case{{3, 1, 64}, DType::kF16, 16},
                        Case{{3, 1, 32}, DType::kF16, 32, 4, 1100},
                        Case{{2, 1, 32}, DType::kF16, 16, 4, 300},
                        Case{{3, 1, 32}, DType::kF16, 16, 16, 300, 0, false, false, 64, 0, true},
                        Case{{3, 1, 32}, DType::kF16, 16, 0, 300, 0, false, false, 64, 7},
                        Case{{2, 1, 32}, DType::kF16, 16, 0, 0, 0, false, true}}) {
    INFO(describe(c));
    constexpr int32_t kLength = 2100;
    const auto whole = Feeder(ops, c, {kLength}, 1).feed({700});
    CHECK((Feeder(split, c, {kLength}, 2).feed({3}) == whole));
    const auto d = difference(whole[0], Feeder(*ref, c, {kLength}, 1).feed({700})[0]);
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
    for (const Case& c : cases())
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
  for (const Case& c : {Case{{8, 2, 128}, DType::kF16, 16},
                        Case{{14, 2, 64}, DType::kBF16, 64},
                        Case{{18, 2, 80}, DType::kF16, 32},
                        Case{{4, 1, 256}, DType::kF16, 16, 100, 700},
                        Case{{6, 2, 96}, DType::kF16, 16, 16, 300, 0, false, false, 64, 0, true},
                        Case{{3, 1, 64}, DType::kF16, 16, 0, 300, 30.0f, false, true, 64, 7},
                        Case{{6, 3, 32}, DType::kBF16, 16, 4, 300}}) {
    INFO(describe(c));
    constexpr int32_t kLength = 1100;
    const double tolerance = c.format == DType::kF16 ? 2e-6 : 1e-4;
    const auto expected = Feeder(*ref, c, {kLength}, 1).feed({700})[0];
    const auto prefilled = difference(Feeder(*ops, c, {kLength}, 2).feed({700})[0], expected);
    CHECK(prefilled.nmse < tolerance);
    // One row at a time behind a prefill, in a batch of two.
    const std::vector<int32_t> lengths = {kLength, kLength};
    const auto several = Feeder(*ops, c, lengths, 3).feed({500, 333});
    const auto reference = Feeder(*ref, c, lengths, 1).feed({500, 500});
    for (size_t s = 0; s < lengths.size(); ++s)
      CHECK(difference(several[s], reference[s]).nmse < tolerance);
    const auto decoded = difference(Feeder(*ops, c, {400}, 4).feed({1})[0],
                                    Feeder(*ref, c, {400}, 4).feed({400})[0]);
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
  Case c{{3, 3, 32}, DType::kF16, 16};
  c.num_groups = 2;
  const std::vector<int32_t> lengths = {4500, 70};
  const auto expected = Feeder(*ref, c, lengths, 1).feed({4500, 70});
  Feeder feeder(*ops, c, lengths, 2);
  const auto got = feeder.feed({4498, 68});
  for (size_t s = 0; s < lengths.size(); ++s) CHECK(difference(got[s], expected[s]).nmse < 2e-6);
}

TEST_CASE("prefill that fills half of the GPU agrees with RefOps", "[cuda]") {
  const auto ops = testing::cuda_or_skip();
  if (!ops) return;
  ThreadPool pool(4);
  const auto ref = make_ref_ops(pool);
  for (const Case& c : {Case{{32, 8, 128}, DType::kF16, 16},
                        Case{{32, 16, 128}, DType::kBF16, 48, 0, 0, 0, false, true},
                        Case{{48, 16, 64}, DType::kF16, 32, 20, 130},
                        Case{{48, 16, 64}, DType::kBF16, 16, 16, 100, 0, false, false, 64, 0, true},
                        Case{{32, 8, 128}, DType::kF16, 16, 16, 60, 0, false, true, 48, 0, true},
                        Case{{32, 16, 128}, DType::kF16, 16, 0, 33, 0, false, false, 32, 5}}) {
    INFO(describe(c));
    const std::vector<int32_t> lengths = {1, 300, 17, 130}, chunks = {1, 170, 17, 130};
    Feeder oracle(*ref, c, lengths, 1);
    const auto expected = oracle.feed(chunks);
    for (const DType activations : {DType::kF32, DType::kF16}) {
      Feeder device(*ops, c, lengths, 2, activations);
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
  ops->write_table(device_table, entries);
  for (const TableEntry& entry : entries) table[static_cast<size_t>(entry.offset)] = entry.page;
  std::vector<int32_t> got(table.size());
  ops->download(got.data(), device_table, static_cast<int64_t>(got.size() * sizeof(int32_t)));
  ops->synchronize();
  CHECK((got == table));
}

}  // namespace
}  // namespace headwater
