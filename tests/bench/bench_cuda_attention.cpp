#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>

#include "tests/bench/bench_cuda.h"

namespace headwater {
namespace {

// How the pages of a head lie in the arena.
enum class PageOrder {
  kShuffled,  // anywhere
  kRows,      // the pages of all heads of a group beside each other, one logical page after another
  kHeads,     // every kPromptPages pages of a head beside each other
};
constexpr int32_t kPromptPages = 8192 / 16;

struct AttentionCase {
  std::vector<int32_t> lengths;
  int32_t rows;                     // at the end of every sequence
  int32_t window = 0;               // > 0: what the other heads see
  std::vector<int32_t> whole = {};  // KV heads of each layer that see everything; empty: all, in as
                                    // many layers as no cache holds
  PageOrder order = PageOrder::kShuffled;
};

std::vector<int32_t> repeated(int32_t num_seqs, int32_t length) {
  return std::vector(static_cast<size_t>(num_seqs), length);
}
// From 256 to 16,384 tokens, as many below 2,048 as above.
std::vector<int32_t> mixed(int32_t num_seqs) {
  std::vector<int32_t> lengths;
  for (int32_t s = 0; s < num_seqs; ++s)
    lengths.push_back(16 * static_cast<int32_t>(std::pow(2.0, 4 + 6.0 * s / (num_seqs - 1))));
  std::shuffle(lengths.begin(), lengths.end(), std::mt19937(4));
  return lengths;
}

// 32 query heads on 8 KV heads of 128.
void bench_case(Ops& ops, const AttentionCase& c) {
  const PageShape page{DType::kF16, 128, 16, 0};
  const HeadShape heads{32, 8, 128};
  const auto num_seqs = static_cast<int32_t>(c.lengths.size());
  const int32_t rows = c.rows, longest = std::ranges::max(c.lengths);
  const double num_keys = std::accumulate(c.lengths.begin(), c.lengths.end(), 0.0);
  std::vector<int32_t> whole = c.whole;
  if (whole.empty()) {
    const double layer_bytes = num_keys * heads.num_kv_heads * 128 * 4;
    whole.resize(static_cast<size_t>(std::clamp(kRotatedBytes / layer_bytes, 1.0, 16.0)),
                 heads.num_kv_heads);
  }
  const auto layers = static_cast<int32_t>(whole.size());
  std::vector<KvHeadSlot> slots;
  int32_t slots_of[2] = {0, 0};
  for (const int32_t num_whole : whole)
    for (int32_t h = 0; h < heads.num_kv_heads; ++h) {
      const int32_t group = h < num_whole ? 0 : 1;
      slots.push_back({group, slots_of[group]++});
    }
  std::vector groups = {KvGroupShape{page, slots_of[0], 0}};
  if (slots_of[1] > 0) groups.push_back({page, slots_of[1], 0});
  std::vector<int32_t> table;
  std::vector<int64_t> table_begin;
  std::vector<int32_t> positions, row_seq, row_begin = {0};
  int32_t num_used = 0;
  for (int32_t s = 0; s < num_seqs; ++s) {
    const int32_t length = c.lengths[static_cast<size_t>(s)], num_pages = length / 16;
    const int32_t first_of[2] = {0, (length - c.window) / 16};
    for (size_t g = 0; g < groups.size(); ++g) {
      table_begin.push_back(static_cast<int64_t>(table.size()));
      const int32_t num_heads = groups[g].num_heads, first = first_of[g];
      table.resize(table.size() + static_cast<size_t>(num_pages) * static_cast<size_t>(num_heads),
                   kNoPage);
      int32_t* own = table.data() + table_begin.back();
      const int32_t together = c.order == PageOrder::kHeads ? kPromptPages : 1;
      for (int32_t begin = first; begin < num_pages; begin += together)
        for (int32_t h = 0; h < num_heads; ++h)
          for (int32_t p = begin; p < std::min(begin + together, num_pages); ++p)
            own[int64_t{p} * num_heads + h] = num_used++;
    }
    for (int32_t r = 0; r < rows; ++r) {
      positions.push_back(length - rows + r);
      row_seq.push_back(s);
    }
    row_begin.push_back(static_cast<int32_t>(positions.size()));
  }
  if (c.order == PageOrder::kShuffled) {
    std::vector<int32_t> places(static_cast<size_t>(num_used));
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), std::mt19937(1));
    for (int32_t& id : table)
      if (id != kNoPage) id = places[static_cast<size_t>(id)];
  }
  for (int32_t& id : table)
    if (id != kNoPage) id *= static_cast<int32_t>(page.page_bytes() / kPageGranuleBytes);
  const Buffer arena = ops.allocate(num_used * page.page_bytes());
  const auto read_bytes = static_cast<double>(arena.bytes());  // by all layers
  fill_with_halves(ops, arena);
  std::vector<int32_t> starts(positions.size(), 0);
  for (size_t r = 0; groups.size() > 1 && r < positions.size(); ++r)
    starts.push_back(c.lengths[r / static_cast<size_t>(rows)] - c.window);
  const Buffer device[] = {to_device(ops, table),
                           to_device(ops, table_begin),
                           to_device(ops, positions),
                           to_device(ops, row_seq),
                           to_device(ops, row_begin),
                           to_device(ops, groups),
                           to_device(ops, slots),
                           to_device(ops, starts)};
  StepView step;
  step.num_rows = static_cast<int32_t>(positions.size());
  step.num_seqs = num_seqs;
  step.position_bound = longest;
  step.positions = device[2].as<int32_t>();
  step.row_seq = device[3].as<int32_t>();
  step.row_begin = device[4].as<int32_t>();
  step.pages = {arena.data(),
                device[0].as<int32_t>(),
                device[1].as<int64_t>(),
                device[5].as<KvGroupShape>(),
                device[6].as<KvHeadSlot>(),
                device[7].as<int32_t>(),
                static_cast<int32_t>(groups.size())};
  step.pages.format = page.format;
  const int64_t cols = int64_t{heads.num_heads} * heads.head_dim;
  const DType dtype = rows > 8 ? DType::kF16 : DType::kF32;
  const Buffer q = ops.allocate(step.num_rows * cols * dtype_bytes(dtype));
  const Buffer out = ops.allocate(q.bytes());
  if (dtype == DType::kF16) {
    fill_with_halves(ops, q);
  } else {
    ops.upload(q.data(), random_values(step.num_rows * cols).data(), q.bytes());
  }
  AttentionArgs args;
  args.heads = heads;
  args.scale = 0.0883883f;
  args.q = {q.data(), dtype, step.num_rows, cols, cols};
  args.out = {out.data(), dtype, step.num_rows, cols, cols};
  // Enough calls that starting the first and waiting for the last do not count.
  const int32_t rounds = (16 + layers - 1) / layers;
  const double seconds = median_seconds(ops,
                                        [&] {
                                          for (int32_t i = 0; i < rounds * layers; ++i) {
                                            args.layer = i % layers;
                                            ops.attention(args, step);
                                          }
                                        }) /
                         (rounds * layers);
  const double seen = num_keys - num_seqs * (rows - 1) / 2.0;  // by a row of each
  std::printf("| attention %d x %d%s, %d rows",
              num_seqs,
              longest,
              longest > std::ranges::min(c.lengths) ? " at most" : "",
              rows);
  if (c.window > 0)
    std::printf(", %d of %d heads see %d", slots_of[1], slots_of[0] + slots_of[1], c.window);
  constexpr const char* kOrders[] = {"shuffled pages", "pages in rows", "pages by head"};
  std::printf(", %s | %.0f us | %.0f GB/s",
              kOrders[static_cast<int>(c.order)],
              seconds * 1e6,
              read_bytes / layers / seconds / 1e9);
  if (c.window == 0) std::printf(" | %.1f TFLOP/s", 4e-12 * seen * rows * double(cols) / seconds);
  std::printf(" |\n");
  if (rows > 8) {
    const int64_t kv_cols = int64_t{heads.num_kv_heads} * heads.head_dim;
    const Matrix k{out.data(), dtype, step.num_rows, kv_cols, cols};
    RopeSpec rope;
    rope.rotary_dim = heads.head_dim;
    for (int32_t i = 0; i < heads.head_dim / 2; ++i) rope.inv_freq.push_back(1.0 / (1 + i));
    const Buffer angle_values = ops.allocate(step.num_rows * heads.head_dim * 4);
    const Matrix angles{
        angle_values.data(), DType::kF32, step.num_rows, heads.head_dim, heads.head_dim};
    ops.rope_angles(rope, step, angles);
    const double append =
        median_seconds(
            ops,
            [&] {
              for (int32_t layer = 0; layer < layers; ++layer)
                ops.rope_append_kv(
                    layer, heads, rope, step, angles, args.q, k, k.columns(kv_cols, kv_cols));
            }) /
        layers;
    std::printf("| rope and append, %d rows | %.0f us | %.0f GB/s |\n",
                rows,
                append * 1e6,
                static_cast<double>(step.num_rows) * 2 *
                    static_cast<double>(2 * cols + 5 * kv_cols) / append / 1e9);
  }
  std::fflush(stdout);
}

}  // namespace

void bench_attention(Ops& ops) {
  ops.reserve(131072);
  for (const int32_t depth : {1024, 32768, 131072}) bench_case(ops, {{depth}, 1});
  bench_case(ops, {repeated(8, 32768), 1});
  bench_case(ops, {repeated(64, 1024), 1});
  bench_case(ops, {mixed(16), 1});
  bench_case(ops, {mixed(64), 1});
  bench_case(ops, {repeated(40, 32768), 1, 32768 / 5, {1}});
  bench_case(ops, {{8192}, 512});
  bench_case(ops, {{32768}, 8192});
  for (const int32_t rows : {2048, 8192, 32768}) bench_case(ops, {{rows}, rows});
}

// What razor's heads of an 8B model read when its pool is full: tests/bench/full_pool.py with seed
// 1, 39 of 256 KV heads whole; and when its last sequences are left.
void bench_full_pool(Ops& ops) {
  ops.reserve(33792);
  const std::vector<int32_t> whole = {4, 0, 1, 3, 0, 0, 1, 1, 2, 0, 1, 0, 2, 1, 2, 3,
                                      0, 0, 2, 1, 1, 0, 1, 1, 3, 2, 1, 1, 1, 1, 0, 3};
  for (const int32_t num_seqs : {41, 7})
    for (const PageOrder order : {PageOrder::kShuffled, PageOrder::kRows, PageOrder::kHeads})
      bench_case(ops, {repeated(num_seqs, 33280), 1, 6784, whole, order});
}

}  // namespace headwater
