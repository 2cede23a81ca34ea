// bench_cuda [attention | full-pool | products | some-rows | decode-layer | prefill-layer]:
// CudaOps' operations at the sizes of an 8B model, host clock around many calls between two
// synchronisations. Random bytes as weights. "some-rows": 8 to 65 with F16 weights. "...-layer":
// what these, or 8,192 rows of a prefill, take beside attention. Without a name: all. Whole models:
// headwater bench
// --offline.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace headwater {
namespace {

constexpr int kRuns = 5;
constexpr int64_t kRotatedBytes = int64_t{1} << 30;  // of weights or keys: no cache holds them

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Median of the runs, after one that warms up.
template <typename Body>
double median_seconds(Ops& ops, const Body& body) {
  std::vector<double> runs;
  for (int run = 0; run <= kRuns; ++run) {
    ops.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    body();
    ops.synchronize();
    if (run > 0) runs.push_back(seconds_since(begin));
  }
  std::sort(runs.begin(), runs.end());
  return runs[runs.size() / 2];
}

template <typename T>
Buffer to_device(Ops& ops, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  Buffer buffer = ops.allocate(bytes);
  ops.upload(buffer.data(), values.data(), bytes);
  return buffer;
}

std::vector<float> random_values(int64_t count) {
  std::mt19937 random(3);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random() % 2000) / 1000.0f - 1.0f;
  return values;
}

void fill_with_halves(Ops& ops, const Buffer& buffer) {
  std::vector<uint16_t> halves(size_t{1} << 22);
  std::mt19937 random(2);  // f16 of 0.0 .. 1.0, either sign
  for (uint16_t& half : halves) half = (random() & 0x8000) | (random() % 0x3C00);
  const auto bytes = static_cast<int64_t>(halves.size() * sizeof(uint16_t));
  for (int64_t at = 0; at < buffer.bytes(); at += bytes)
    ops.upload(buffer.data() + at, halves.data(), std::min(bytes, buffer.bytes() - at));
}

constexpr int64_t kRowCounts[] = {1, 2, 4, 8, 16, 32, 64, 65, 128, 256, 512, 2048};
constexpr int64_t kSomeRowCounts[] = {8, 16, 32, 64, 65};

// Copies of one weight, together larger than any cache.
std::vector<std::unique_ptr<Weight>> random_weights(Ops& ops,
                                                    QuantFormat format,
                                                    int64_t rows,
                                                    int64_t cols) {
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * row_bytes(format, cols)));
  std::mt19937 random(1);
  for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
    const uint32_t word = random() & 0xBB3BBB3B;
    std::memcpy(&bytes[i], &word, 4);
  }
  const WeightView view{format, rows, cols, bytes.data()};
  std::vector<std::unique_ptr<Weight>> copies;
  for (int64_t held = 0; held < kRotatedBytes; held += view.bytes())
    copies.push_back(ops.load_weight({&view, 1}));
  return copies;
}

void bench_linear(Ops& ops,
                  QuantFormat format,
                  int64_t rows,
                  int64_t cols,
                  std::span<const int64_t> row_counts = kRowCounts) {
  const auto copies = random_weights(ops, format, rows, cols);
  const int64_t weight_bytes = rows * row_bytes(format, cols);
  std::printf("| %s %ld x %ld |",
              std::string(quant_traits(format).name).c_str(),
              static_cast<long>(rows),
              static_cast<long>(cols));
  for (const int64_t m : row_counts) {
    const DType dtype = ops.linear_dtype(*copies[0], m);
    const Buffer x = ops.allocate(m * cols * dtype_bytes(dtype));
    if (dtype == DType::kF16) {
      fill_with_halves(ops, x);
    } else {
      ops.upload(x.data(), random_values(m * cols).data(), x.bytes());
    }
    const Buffer out = ops.allocate(m * rows * 4);
    const double seconds = median_seconds(ops,
                                          [&] {
                                            for (const auto& weight : copies)
                                              ops.linear(*weight,
                                                         {x.data(), dtype, m, cols, cols},
                                                         {out.data(), DType::kF32, m, rows, rows},
                                                         LinearMode::kOverwrite);
                                          }) /
                           static_cast<double>(copies.size());
    const double gigabytes = static_cast<double>(weight_bytes) / seconds / 1e9;
    const double teraflops = 2e-12 * static_cast<double>(m * rows * cols) / seconds;
    if (m < 128) {
      std::printf(" %.1f us, %.0f GB/s |", seconds * 1e6, gigabytes);
    } else {
      std::printf(" %.0f us, %.0f TFLOP/s |", seconds * 1e6, teraflops);
    }
  }
  std::printf("\n");
  std::fflush(stdout);
}

void bench_products(Ops& ops) {
  std::printf("| weight |");
  for (const int64_t m : kRowCounts) std::printf(" M = %ld |", static_cast<long>(m));
  std::printf("\n|---|");
  for ([[maybe_unused]] const int64_t m : kRowCounts) std::printf("---|");
  std::printf("\n");
  for (const QuantFormat format : {QuantFormat::kF16, QuantFormat::kQ8_0, QuantFormat::kQ4_K}) {
    bench_linear(ops, format, 4096, 4096);
    bench_linear(ops, format, 6144, 4096);
    bench_linear(ops, format, 28672, 4096);
    bench_linear(ops, format, 4096, 14336);
  }
  for (const QuantTraits& traits : quant_formats())
    if (traits.block_elements > 1) bench_linear(ops, traits.format, 28672, 4096);
}

void bench_some_rows(Ops& ops) {
  constexpr int64_t kHidden = 4096, kFfn = 14336, kQkv = 6144;
  for (const QuantFormat format : {QuantFormat::kF16, QuantFormat::kQ8_0, QuantFormat::kQ4_K})
    for (const auto& [rows, cols] : {std::pair{kHidden, kHidden},
                                     {kQkv, kHidden},
                                     {2 * kFfn, kHidden},
                                     {kHidden, kFfn},
                                     {int64_t{128256}, kHidden}})
      bench_linear(ops, format, rows, cols, kSomeRowCounts);
}

// All products of a few layers as one graph, with their norms and gates: what keeps memory busy
// between them counts.
void bench_decode_layer(Ops& ops) {
  constexpr int64_t kHidden = 4096, kFfn = 14336, kQkv = 6144, kMostRows = 65;
  constexpr int kLayers = 4;
  std::vector<std::unique_ptr<Weight>> qkv, o, gate_up, down;
  double weight_bytes = 0;
  const auto load = [&](auto& to, int64_t rows, int64_t cols) {
    const std::vector<uint16_t> halves(static_cast<size_t>(rows * cols), 0x2400);
    const WeightView view{QuantFormat::kF16, rows, cols, halves.data()};
    for (int layer = 0; layer < kLayers; ++layer) to.push_back(ops.load_weight({&view, 1}));
    weight_bytes += static_cast<double>(view.bytes());
  };
  load(qkv, kQkv, kHidden);
  load(o, kHidden, kHidden);
  load(gate_up, 2 * kFfn, kHidden);
  load(down, kHidden, kFfn);
  const Buffer residual = ops.allocate(kMostRows * kHidden * 4);
  const Buffer normed = ops.allocate(kMostRows * kHidden * 4);
  const Buffer wide = ops.allocate(kMostRows * 2 * kFfn * 4);
  const Buffer narrow = ops.allocate(kMostRows * kFfn * 4);
  const Buffer norm = to_device(ops, random_values(kHidden));
  uint64_t key = 0;
  for (const int64_t m : kSomeRowCounts) {
    const DType dtype = ops.linear_dtype(*qkv[0], m);
    const auto of = [&](const Buffer& buffer, int64_t cols, DType type) {
      return Matrix{buffer.data(), type, m, cols, cols};
    };
    const Matrix x = of(residual, kHidden, DType::kF32);
    const auto begin = [&](const Weight& weight, Gate gate, Matrix out) {
      ops.fused_linear(weight,
                       {.x = x,
                        .norm = norm.as<float>(),
                        .eps = 1e-5f,
                        .gate = gate,
                        .out = out,
                        .normed = of(normed, kHidden, dtype),
                        .product = of(wide, weight.rows, dtype)});
    };
    ++key;
    const double seconds =
        median_seconds(
            ops,
            [&] {
              for (int i = 0; i < 4; ++i)
                ops.replay(key, [&] {
                  for (size_t layer = 0; layer < kLayers; ++layer) {
                    const Matrix heads = of(wide, kQkv, dtype), gated = of(narrow, kFfn, dtype);
                    begin(*qkv[layer], Gate::kNone, heads);
                    ops.linear(*o[layer], heads.columns(0, kHidden), x, LinearMode::kAdd);
                    begin(*gate_up[layer], Gate::kSilu, gated);
                    ops.linear(*down[layer], gated, x, LinearMode::kAdd);
                  }
                });
            }) /
        (4 * kLayers);
    std::printf("| F16 layer without attention, %ld rows | %.1f us | %.0f GB/s |\n",
                static_cast<long>(m),
                seconds * 1e6,
                weight_bytes / seconds / 1e9);
    std::fflush(stdout);
  }
}

// f16 activations as linear_dtype gives them; the residual is f32.
void bench_prefill_layer(Ops& ops) {
  constexpr int64_t kRows = 8192, kHidden = 4096, kFfn = 14336, kQ = 4096, kKv = 1024;
  const std::vector<float> values = random_values(kRows * kHidden);
  const Buffer residual = to_device(ops, values), wide = ops.allocate(kRows * 2 * kFfn * 2),
               narrow = ops.allocate(kRows * kFfn * 2);
  const Buffer norm_weight = to_device(ops, random_values(kHidden));
  fill_with_halves(ops, wide);
  const auto f16 = [&](const Buffer& buffer, int64_t cols) {
    return Matrix{buffer.data(), DType::kF16, kRows, cols, cols};
  };
  const Matrix x{residual.data(), DType::kF32, kRows, kHidden, kHidden};
  const auto report = [](const char* name, double seconds, double bytes) {
    std::printf("| %s | %.0f us | %.0f GB/s |\n", name, seconds * 1e6, bytes / seconds / 1e9);
  };
  constexpr int kCalls = 8;
  const auto seconds_of = [&](const auto& body) {
    return median_seconds(ops,
                          [&] {
                            for (int i = 0; i < kCalls; ++i) body();
                          }) /
           kCalls;
  };
  report("rms_norm, f32 to f16",
         seconds_of([&] { ops.rms_norm(x, norm_weight.as<float>(), 1e-5f, f16(narrow, kHidden)); }),
         6.0 * kRows * kHidden);
  report("silu_mul, f16",
         seconds_of([&] { ops.silu_mul(f16(wide, 2 * kFfn), f16(narrow, kFfn)); }),
         6.0 * kRows * kFfn);

  std::printf("| product | time | | |\n|---|---|---|---|\n");
  struct Product {
    const char* name;
    int64_t rows, cols;
    LinearMode mode;
  };
  for (const QuantFormat format : {QuantFormat::kF16, QuantFormat::kQ8_0, QuantFormat::kQ4_K}) {
    double all_seconds = 0, all_flops = 0;
    for (const Product& p : {Product{"qkv, f16", kQ + 2 * kKv, kHidden, LinearMode::kOverwrite},
                             Product{"o, added in f32", kHidden, kQ, LinearMode::kAdd},
                             Product{"gate and up, f16", 2 * kFfn, kHidden, LinearMode::kOverwrite},
                             Product{"down, added in f32", kHidden, kFfn, LinearMode::kAdd}}) {
      const auto weights = random_weights(ops, format, p.rows, p.cols);
      const Matrix out = p.mode == LinearMode::kAdd ? x : f16(wide, p.rows);
      const double seconds =
          median_seconds(ops,
                         [&] {
                           for (const auto& weight : weights)
                             ops.linear(*weight, f16(narrow, p.cols), out, p.mode);
                         }) /
          static_cast<double>(weights.size());
      const double flops = 2.0 * kRows * static_cast<double>(p.rows * p.cols);
      std::printf("| %s, %s | %.0f us | %.0f TFLOP/s |\n",
                  std::string(quant_traits(format).name).c_str(),
                  p.name,
                  seconds * 1e6,
                  flops / seconds * 1e-12);
      std::fflush(stdout);
      all_seconds += seconds;
      all_flops += flops;
    }
    std::printf("| %s, all | %.0f us | %.0f TFLOP/s |\n",
                std::string(quant_traits(format).name).c_str(),
                all_seconds * 1e6,
                all_flops / all_seconds * 1e-12);
  }
}

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
void bench_attention(Ops& ops, const AttentionCase& c) {
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

// What razor's heads of an 8B model read when its pool is full: tests/bench/full_pool.py with seed
// 1, 39 of 256 KV heads whole; and when its last sequences are left.
void bench_full_pool(Ops& ops) {
  const std::vector<int32_t> whole = {4, 0, 1, 3, 0, 0, 1, 1, 2, 0, 1, 0, 2, 1, 2, 3,
                                      0, 0, 2, 1, 1, 0, 1, 1, 3, 2, 1, 1, 1, 1, 0, 3};
  for (const int32_t num_seqs : {41, 7})
    for (const PageOrder order : {PageOrder::kShuffled, PageOrder::kRows, PageOrder::kHeads})
      bench_attention(ops, {repeated(num_seqs, 33280), 1, 6784, whole, order});
}

}  // namespace
}  // namespace headwater

int main(int argc, char** argv) {
  using namespace headwater;  // NOLINT: main
  const std::string_view only = argc > 1 ? argv[1] : "";
  const auto ops = make_cuda_ops();
  ops->reserve(only == "full-pool" ? 33792 : 131072);
  std::printf("%s\n", std::string(ops->description()).c_str());
  if (only.empty() || only == "products") bench_products(*ops);
  if (only.empty() || only == "some-rows") bench_some_rows(*ops);
  if (only.empty() || only == "decode-layer") bench_decode_layer(*ops);
  if (only.empty() || only == "prefill-layer") bench_prefill_layer(*ops);
  if (!only.empty() && only != "attention" && only != "full-pool") return 0;
  if (only == "full-pool") return bench_full_pool(*ops), 0;
  for (const int32_t depth : {1024, 32768, 131072}) bench_attention(*ops, {{depth}, 1});
  bench_attention(*ops, {repeated(8, 32768), 1});
  bench_attention(*ops, {repeated(64, 1024), 1});
  bench_attention(*ops, {mixed(16), 1});
  bench_attention(*ops, {mixed(64), 1});
  bench_attention(*ops, {repeated(40, 32768), 1, 32768 / 5, {1}});
  bench_attention(*ops, {{8192}, 512});
  bench_attention(*ops, {{32768}, 8192});
  for (const int32_t rows : {2048, 8192, 32768}) bench_attention(*ops, {{rows}, rows});
  return 0;
}
