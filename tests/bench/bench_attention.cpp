// bench_attention [threads]: CpuOps' attention over pages of one head each, beside the measured
// read bandwidth. Decode of one row per sequence, whole contexts and windows; prefill of 512 rows
// at depth. Random K and V; pages in shuffled order. Best of several runs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/ops.h"

namespace headwater {
namespace {

constexpr int kRuns = 5;

template <typename Body>
double best_seconds(const Body& body) {
  double best = 1e30;
  for (int run = 0; run < kRuns; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    best = std::min(best, passed.count());
  }
  return best;
}

double read_bandwidth(ThreadPool& pool) {
  constexpr int64_t kBytes = 256 << 20, kChunk = 1 << 20;
  std::vector<uint64_t> data(static_cast<size_t>(kBytes / 8), 1);
  std::vector<uint64_t> sums(static_cast<size_t>(kBytes / kChunk));
  const double seconds = best_seconds([&] {
    pool.parallel_for(kBytes / kChunk, [&](int64_t task, int) {
      const uint64_t* p = data.data() + task * kChunk / 8;
      uint64_t lanes[8] = {};
      for (int64_t i = 0; i < kChunk / 8; i += 8)
        for (int j = 0; j < 8; ++j) lanes[j] += p[i + j];
      for (const uint64_t lane : lanes) sums[static_cast<size_t>(task)] += lane;
    });
  });
  return kBytes / seconds;
}

struct Case {
  HeadShape heads;
  int32_t num_seqs, length, rows, window;  // window 0: everything
};

void bench(Ops& ops, const Case& c, double bandwidth) {
  // Layers of their own, so that no run finds the last one's pages in a cache.
  const PageShape page{DType::kF16, c.heads.head_dim, 16, 0};
  const int64_t seq_bytes = int64_t{c.length} * c.heads.num_kv_heads * c.heads.head_dim * 4;
  const int32_t layers =
      static_cast<int32_t>(std::clamp<int64_t>((256 << 20) / (seq_bytes * c.num_seqs), 1, 4));
  const KvGroupShape group{page, layers * c.heads.num_kv_heads, 0};
  std::vector<KvHeadSlot> slots;
  for (int32_t h = 0; h < group.num_heads; ++h) slots.push_back({0, h});
  const int64_t pages = (c.length + 15) / 16;
  const int64_t entries = pages * group.num_heads;
  std::vector<int32_t> table(static_cast<size_t>(entries * c.num_seqs));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(1));
  for (int32_t& id : table) id *= static_cast<int32_t>(page.page_bytes() / kPageGranuleBytes);
  Buffer arena = ops.allocate(static_cast<int64_t>(table.size()) * page.page_bytes());
  std::mt19937 random(2);
  for (int64_t i = 0; i < arena.bytes() / 2; ++i)  // f16 of 0.0 .. 1.0, either sign
    arena.as<uint16_t>()[i] = static_cast<uint16_t>((random() & 0x8000) | (random() % 0x3C00));

  std::vector<int64_t> table_begin;
  std::vector<int32_t> positions, row_seq, row_begin = {0}, starts;
  for (int32_t s = 0; s < c.num_seqs; ++s) {
    table_begin.push_back(s * entries);
    for (int32_t r = 0; r < c.rows; ++r) {
      positions.push_back(c.length - c.rows + r);
      row_seq.push_back(s);
      starts.push_back(c.window == 0 ? 0 : positions.back() + 1 - c.window);
    }
    row_begin.push_back(static_cast<int32_t>(positions.size()));
  }
  StepView step;
  step.num_rows = static_cast<int32_t>(positions.size());
  step.num_seqs = c.num_seqs;
  step.positions = positions.data();
  step.row_seq = row_seq.data();
  step.row_begin = row_begin.data();
  step.pages = {
      arena.data(), table.data(), table_begin.data(), &group, slots.data(), starts.data(), 1};
  const int64_t cols = int64_t{c.heads.num_heads} * c.heads.head_dim;
  std::vector<float> q(static_cast<size_t>(step.num_rows * cols)), out(q.size());
  for (float& x : q) x = static_cast<float>(random() % 2000) / 1000.0f - 1.0f;
  AttentionArgs args;
  args.heads = c.heads;
  args.scale = 0.125f;
  args.q = {q.data(), DType::kF32, step.num_rows, cols, cols};
  args.out = {out.data(), DType::kF32, step.num_rows, cols, cols};
  const double seconds = best_seconds([&] {
                           for (args.layer = 0; args.layer < layers; ++args.layer)
                             ops.attention(args, step);
                         }) /
                         layers;
  const double seen = c.window == 0 ? c.length - (c.rows - 1) / 2.0 : c.window;
  const double bytes = (c.window == 0 ? c.length : c.window + c.rows) * double{1} * c.num_seqs *
                       c.heads.num_kv_heads * c.heads.head_dim * 4;
  const double flops = seen * step.num_rows * cols * 4;
  std::printf("| %d/%d x %d | %d x %d | %d | %s | %.0f | %.1f | %.0f %% | %.1f |\n",
              c.heads.num_heads,
              c.heads.num_kv_heads,
              c.heads.head_dim,
              c.num_seqs,
              c.length,
              c.rows,
              c.window == 0 ? "all" : std::to_string(c.window).c_str(),
              seconds * 1e6,
              bytes / seconds / 1e9,
              100 * bytes / seconds / bandwidth,
              flops / seconds / 1e9);
  std::fflush(stdout);
}

}  // namespace
}  // namespace headwater

int main(int argc, char** argv) {
  using namespace headwater;  // NOLINT: main
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 0);
  const auto ops = make_cpu_ops(pool);
  const double bandwidth = read_bandwidth(pool);
  std::printf("%s; reads %.1f GB/s\n\n", std::string(ops->description()).c_str(), bandwidth / 1e9);
  std::printf("| heads | sequences | rows | sees | us a layer | GB/s | of reads | GFLOP/s |\n");
  std::printf("|---|---|---|---|---|---|---|---|\n");
  constexpr HeadShape kNeedle{8, 4, 64}, kSmol{9, 3, 64}, kLlama{32, 8, 128};
  for (const Case& c : {Case{kNeedle, 1, 32768, 1, 0},
                        Case{kNeedle, 1, 32768, 1, 6554},
                        Case{kNeedle, 4, 8192, 1, 0},
                        Case{kSmol, 1, 2048, 1, 0},
                        Case{kSmol, 8, 2048, 1, 0},
                        Case{kLlama, 1, 32768, 1, 0},
                        Case{kNeedle, 1, 32768, 96, 0},
                        Case{kNeedle, 1, 32768, 96, 6554},
                        Case{kSmol, 1, 2048, 512, 0},
                        Case{kLlama, 1, 8192, 96, 0}})
    bench(*ops, c, bandwidth);
}
