// Sequences as attention sees them: shapes, windows, holes, selections, and an Ops that is fed
// them.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels/device_memory.h"
#include "tests/support/random.h"

namespace headwater::testing {

struct AttentionCase {
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
class AttentionFeeder {
 public:
  AttentionFeeder(Ops& ops,
                  const AttentionCase& c,
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
      q_.push_back(rounded_to_f16(Random(100 + s).values(q_values, 1.5f)));
      k_.push_back(rounded_to_f16(Random(200 + s).values(kv_values, 1.0f)));
      v_.push_back(rounded_to_f16(Random(300 + s).values(kv_values, 1.0f)));
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
    view.num_single_rows = static_cast<int32_t>(
        std::ranges::find_if(counts, [](int32_t rows) { return rows != 1; }) - counts.begin());
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
  AttentionCase case_;
  DType activations_;
  bool same_angle_ = false;
  std::vector<int32_t> lengths_;
  PageShape shape_;
  KvGroupShape group_;
  std::vector<KvHeadSlot> slots_;
  std::vector<int64_t> table_begin_;
  std::vector<int32_t> table_;
  Buffer arena_;
  DeviceMemory memory_;
  std::vector<std::vector<float>> q_, k_, v_, out_, lse_;
};

inline const std::vector<AttentionCase>& attention_cases() {
  static const std::vector<AttentionCase> all = {
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
inline std::vector<AttentionCase> attention_shapes() {
  std::vector<AttentionCase> all;
  for (const DType format : {DType::kF32, DType::kF16, DType::kBF16})
    for (const int32_t group : {1, 3, 6, 7, 8})
      for (const int32_t head_dim : {64, 80, 96, 128, 256})
        all.push_back({{2 * group, 2, head_dim}, format, 16});
  return all;
}

inline std::string describe(const AttentionCase& c) {
  return "heads " + std::to_string(c.heads.num_heads) + "/" + std::to_string(c.heads.num_kv_heads) +
         " dim " + std::to_string(c.heads.head_dim) + " " + dtype_name(c.format) + " page " +
         std::to_string(c.page_tokens) + " window " + std::to_string(c.window) + " block " +
         std::to_string(c.block);
}

}  // namespace headwater::testing
