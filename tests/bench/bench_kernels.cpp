// bench_kernels [threads]: CpuOps' matrix products beside the measured read bandwidth. Random bytes
// as weights: right for speed, meaningless for quality. Best of several runs; the decode copies of
// each matrix rotate through more memory than the caches hold.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/ops.h"

namespace headwater {
namespace {

constexpr int kRuns = 7;
constexpr int64_t kRotatedBytes = 160 << 20;

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
  constexpr int64_t kChunk = 1 << 20;
  std::vector<uint64_t> data(static_cast<size_t>(kRotatedBytes / 8), 1);
  std::vector<uint64_t> sums(static_cast<size_t>(kRotatedBytes / kChunk));
  const double seconds = best_seconds([&] {
    pool.parallel_for(kRotatedBytes / kChunk, [&](int64_t task, int) {
      const uint64_t* p = data.data() + task * kChunk / 8;
      uint64_t lanes[8] = {};
      for (int64_t i = 0; i < kChunk / 8; i += 8)
        for (int j = 0; j < 8; ++j) lanes[j] += p[i + j];
      for (const uint64_t lane : lanes) sums[static_cast<size_t>(task)] += lane;
    });
  });
  return kRotatedBytes / seconds;
}

void bench_shape(Ops& ops, QuantFormat format, int64_t rows, int64_t cols, double bandwidth) {
  const QuantTraits& traits = quant_traits(format);
  if (cols % traits.block_elements != 0) return;
  WeightView view{format, rows, cols, nullptr};
  std::vector<uint8_t> bytes(static_cast<size_t>(view.bytes()));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>((i * 37 >> 3) & 0x3B);
  view.data = bytes.data();
  std::vector<std::unique_ptr<Weight>> copies;
  for (int64_t held = 0; held < kRotatedBytes; held += view.bytes())
    copies.push_back(ops.load_weight({&view, 1}));

  const auto seconds_per_call = [&](int64_t m, size_t calls) {
    std::vector<float> x(static_cast<size_t>(m * cols));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 31 % 255) / 127.0f - 1.0f;
    std::vector<float> out(static_cast<size_t>(m * rows));
    const Matrix in_rows{x.data(), DType::kF32, m, cols, cols};
    const Matrix out_rows{out.data(), DType::kF32, m, rows, rows};
    return best_seconds([&] {
             for (size_t i = 0; i < calls; ++i)
               ops.linear(*copies[i % copies.size()], in_rows, out_rows, LinearMode::kOverwrite);
           }) /
           static_cast<double>(calls);
  };
  const double decode = seconds_per_call(1, copies.size());
  const double prefill = seconds_per_call(256, std::min<size_t>(copies.size(), 4));
  const double rate = static_cast<double>(view.bytes()) / decode;
  std::printf("%-5s %6ld x %-5ld  M=1 %8.1f us %6.2f GB/s (%3.0f %% of read)  M=256 %7.1f GOP/s\n",
              std::string(traits.name).c_str(),
              static_cast<long>(rows),
              static_cast<long>(cols),
              decode * 1e6,
              rate * 1e-9,
              100 * rate / bandwidth,
              2e-9 * 256 * static_cast<double>(rows * cols) / prefill);
}

}  // namespace
}  // namespace headwater

int main(int argc, char** argv) {
  using namespace headwater;
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : 0);
  const auto ops = make_cpu_ops(pool);
  const double bandwidth = read_bandwidth(pool);
  std::printf("%s; read %.1f GB/s\n", std::string(ops->description()).c_str(), bandwidth * 1e-9);
  for (const QuantTraits& traits : quant_formats()) {
    bench_shape(*ops, traits.format, 3072, 576, bandwidth);
    bench_shape(*ops, traits.format, 576, 1536, bandwidth);
    bench_shape(*ops, traits.format, 4096, 2048, bandwidth);
  }
  bench_shape(*ops, QuantFormat::kQ8_0, 49152, 576, bandwidth);
}
