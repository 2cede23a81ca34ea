// bench_cuda [products | some-rows | decode-layer | prefill-layer | attention | full-pool]:
// CudaOps' operations at the sizes of an 8B model, host clock around many calls between two
// synchronisations. Random bytes as weights. "some-rows": 8 to 65 with F16 weights. "...-layer":
// what these, or 8,192 rows of a prefill, take beside attention. "full-pool": takes 58 GB. Without
// a name: all but the last. Whole models: headwater bench --offline.
#include "tests/bench/bench_cuda.h"

#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace headwater {
namespace {

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

}  // namespace
}  // namespace headwater

int main(int argc, char** argv) {
  using namespace headwater;  // NOLINT: main
  constexpr struct {
    std::string_view name;
    void (*run)(Ops& ops);
    bool by_default = true;
  } kParts[] = {{"products", bench_products},
                {"some-rows", bench_some_rows},
                {"decode-layer", bench_decode_layer},
                {"prefill-layer", bench_prefill_layer},
                {"attention", bench_attention},
                {"full-pool", bench_full_pool, false}};
  const std::string_view only = argc > 1 ? argv[1] : "";
  bool found = only.empty();
  for (const auto& part : kParts) found = found || part.name == only;
  if (!found) {
    std::fprintf(stderr, "bench_cuda: no part %s; there are", argv[1]);
    for (const auto& part : kParts) std::fprintf(stderr, " %s", std::string(part.name).c_str());
    std::fprintf(stderr, "\n");
    return 2;
  }
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) {
    std::fprintf(stderr, "bench_cuda: %s\n", obstacle.c_str());
    return 1;
  }
  const auto ops = make_cuda_ops();
  std::printf("%s\n", std::string(ops->description()).c_str());
  for (const auto& part : kParts)
    if (only.empty() ? part.by_default : part.name == only) part.run(*ops);
  return 0;
}
