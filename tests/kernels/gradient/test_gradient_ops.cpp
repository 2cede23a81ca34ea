// Above 400 lines: one formula and one check per operation.
// GradientOps against the formulas in double, on the CPU and on the GPU.
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>

#include "tests/kernels/compare.h"
#include "tests/support/gradient_device.h"
#include "tests/support/quantize.h"
#include "tests/support/random.h"

using namespace headwater;
using testing::Random;

namespace {

using Values = std::vector<double>;

// Matrices in the memory of a GradientOps.
class Rows {
 public:
  Rows(GradientOps& ops, const std::vector<float>& values, int64_t num_rows)
      : ops_(ops),
        buffer_(ops.allocate(static_cast<int64_t>(values.size() * sizeof(float)))),
        rows_(num_rows),
        cols_(static_cast<int64_t>(values.size()) / num_rows) {
    ops.upload(buffer_.data(), values.data(), buffer_.bytes());
  }
  Matrix view() const { return {buffer_.data(), DType::kF32, rows_, cols_, cols_}; }
  std::vector<float> values() const {
    std::vector<float> out(static_cast<size_t>(rows_ * cols_));
    ops_.download(out.data(), buffer_.data(), buffer_.bytes());
    return out;
  }

 private:
  GradientOps& ops_;
  Buffer buffer_;
  int64_t rows_, cols_;
};

std::vector<float> nothing(int64_t count) {
  return std::vector<float>(static_cast<size_t>(count), 77.0f);  // to be written over
}

double largest(const Values& values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::abs(value));
  return most;
}

// Within a part of the largest value.
void check_close(const std::vector<float>& got, const Values& expected, double part) {
  REQUIRE(got.size() == expected.size());
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - expected[i]);
    worst = std::max(worst, error < 1e30 ? error : 1e30);
  }
  CHECK(worst <= part * largest(expected));
}

struct Product {
  std::vector<std::string> bytes;
  std::vector<WeightView> views;
  std::vector<float> w;  // decoded, [outputs, inputs]
  int64_t outputs = 0, inputs = 0;

  void add(QuantFormat format, int64_t rows, int64_t cols) {
    const QuantTraits& traits = quant_traits(format);
    Random random(static_cast<uint64_t>(rows * 10) + static_cast<uint64_t>(format));
    bytes.push_back(traits.block_elements == 256
                        ? testing::random_k_blocks(format, rows * cols, 0.5f, random.next())
                        : testing::quantize(format, random.values(rows * cols, 0.5f)));
    const size_t at = w.size();
    w.resize(at + static_cast<size_t>(rows * cols));
    traits.decode(bytes.back().data(), rows * cols / traits.block_elements, w.data() + at);
    views.push_back({format, rows, cols, nullptr});
    outputs += rows;
    inputs = cols;
  }
  std::unique_ptr<Weight> load(GradientOps& ops) {
    for (size_t i = 0; i < views.size(); ++i) views[i].data = bytes[i].data();
    return ops.load_weight(views);
  }
};

void check_product(GradientOps& ops, Product& product, int64_t m) {
  constexpr double kPart = 1e-5;
  const auto weight = product.load(ops);
  const int64_t n = product.outputs, k = product.inputs;
  Random random(static_cast<uint64_t>(m));
  const auto x = random.values(m * k, 1), dy = random.values(m * n, 1),
             old = random.values(m * n, 1);
  Values y(static_cast<size_t>(m * n)), sum(y.size()), dx(static_cast<size_t>(m * k));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t o = 0; o < n; ++o) {
      double& out = y[static_cast<size_t>(i * n + o)];
      for (int64_t c = 0; c < k; ++c) {
        const double w = product.w[static_cast<size_t>(o * k + c)];
        out += w * x[static_cast<size_t>(i * k + c)];
        dx[static_cast<size_t>(i * k + c)] += w * dy[static_cast<size_t>(i * n + o)];
      }
    }
  for (size_t i = 0; i < y.size(); ++i) sum[i] = y[i] + old[i];
  const Rows in(ops, x, m), d_out(ops, dy, m);
  const Rows fresh(ops, nothing(m * n), m), added(ops, old, m), d_in(ops, nothing(m * k), m);
  ops.linear(*weight, in.view(), fresh.view(), LinearMode::kOverwrite);
  ops.linear(*weight, in.view(), added.view(), LinearMode::kAdd);
  ops.linear_backward(*weight, d_out.view(), d_in.view());
  INFO(product.views.size() << " parts, " << quant_traits(product.views[0].format).name << ", " << m
                            << " rows");
  check_close(fresh.values(), y, kPart);
  check_close(added.values(), sum, kPart);
  check_close(d_in.values(), dx, kPart);
}

struct AttentionCase {
  int64_t rows;
  int32_t num_heads, num_kv_heads, head_dim;
  int64_t first_row;
  bool gated;
  int32_t sinks, recent;

  int64_t cols() const { return int64_t{num_heads + 2 * num_kv_heads} * head_dim; }
  int32_t num_blocks() const { return static_cast<int32_t>(rows / 64 + 1); }
  GradientAttention args(Matrix qkv, const float* alpha) const {
    GradientAttention a;
    a.heads = {num_heads, num_kv_heads, head_dim};
    a.scale = 0.3f;
    a.qkv = qkv;
    a.first_row = first_row;
    a.alpha = gated ? alpha : nullptr;
    a.sinks = sinks;
    a.recent = recent;
    return a;
  }
};
std::ostream& operator<<(std::ostream& out, const AttentionCase& c) {
  return out << c.rows << " rows from " << c.first_row << ", " << c.num_heads << " on "
             << c.num_kv_heads << " heads of " << c.head_dim << (c.gated ? ", gated" : "");
}

const AttentionCase kAttentionCases[] = {
    {1, 2, 1, 16, 0, false, 0, 0},
    {130, 4, 2, 16, 0, false, 0, 0},
    {200, 3, 1, 40, 130, false, 0, 0},
    {128, 4, 4, 16, 100, true, 4, 20},
    {197, 6, 3, 24, 0, true, 3, 9},
    {90, 3, 3, 16, 0, true, 40, 60},  // windows overlap the sinks, and reach back to the start
};

constexpr int64_t kFirstEffect = 3;

struct AttentionResults {
  std::vector<float> out, d_qkv;
  std::vector<double> d_alpha, effects;
};

struct AttentionInputs {
  std::vector<float> qkv, d_out, alpha;

  explicit AttentionInputs(const AttentionCase& c) {
    Random random(static_cast<uint64_t>(c.rows + c.num_heads));
    qkv = random.values(c.rows * c.cols(), 1);
    d_out = random.values(c.rows * c.num_heads * c.head_dim, 1);
    std::fill_n(d_out.begin(), c.first_row * c.num_heads * c.head_dim, 0.0f);
    for (int32_t i = 0; i < c.num_kv_heads; ++i) alpha.push_back(0.5f + 0.4f * random.unit());
    alpha[0] = 0;
    if (alpha.size() > 1) alpha[1] = 1;
  }
};

AttentionResults run(GradientOps& ops, const AttentionCase& c) {
  const AttentionInputs inputs(c);
  AttentionResults results;
  const int64_t q_cols = int64_t{c.num_heads} * c.head_dim;
  const Rows qkv(ops, inputs.qkv, c.rows), alpha(ops, inputs.alpha, 1);
  const Rows d_out(ops, inputs.d_out, c.rows), out(ops, nothing(c.rows * q_cols), c.rows);
  const Rows d_qkv(ops, nothing(c.rows * c.cols()), c.rows);
  results.d_alpha.assign(inputs.alpha.size(), 0.25);
  results.effects.assign(static_cast<size_t>(c.num_heads * c.num_blocks() * c.num_blocks()), 0.5);
  const auto bytes = [](const std::vector<double>& values) {
    return static_cast<int64_t>(values.size() * sizeof(double));
  };
  const Buffer d_alpha = ops.allocate(bytes(results.d_alpha));
  const Buffer effects = ops.allocate(bytes(results.effects));
  ops.upload(d_alpha.data(), results.d_alpha.data(), d_alpha.bytes());
  ops.upload(effects.data(), results.effects.data(), effects.bytes());
  AttentionFindings findings;
  if (c.gated) findings.d_alpha = d_alpha.as<double>();
  if (!c.gated) findings.effects = effects.as<double>();
  findings.num_blocks = c.num_blocks();
  findings.first_effect_row = kFirstEffect;
  const GradientAttention args = c.args(qkv.view(), alpha.view().f32_row(0));
  ops.attention(args, out.view());
  ops.attention_backward(args, d_out.view(), d_qkv.view(), findings);
  results.out = out.values();
  results.d_qkv = d_qkv.values();
  ops.download(results.d_alpha.data(), d_alpha.data(), d_alpha.bytes());
  ops.download(results.effects.data(), effects.data(), effects.bytes());
  return results;
}

// Weights of a row over the positions that `sees` says; zero elsewhere.
Values softmax(const Values& logits, const std::function<bool(int64_t)>& sees) {
  double most = -1e300, sum = 0;
  for (size_t i = 0; i < logits.size(); ++i)
    if (sees(static_cast<int64_t>(i))) most = std::max(most, logits[i]);
  Values weights(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    if (sees(static_cast<int64_t>(i))) sum += weights[i] = std::exp(logits[i] - most);
  for (double& weight : weights) weight /= sum;
  return weights;
}

void check_attention(GradientOps& ops, const AttentionCase& c) {
  const AttentionInputs in(c);
  const AttentionResults got = run(ops, c);
  const int64_t dim = c.head_dim, cols = c.cols(), q_cols = c.num_heads * dim;
  const int64_t group = c.num_heads / c.num_kv_heads, nb = c.num_blocks();
  Values out(in.d_out.size()), d_qkv(in.qkv.size());
  Values d_alpha(in.alpha.size(), 0.25), effects(got.effects.size(), 0.5);
  for (int64_t head = 0; head < c.num_heads; ++head)
    for (int64_t row = c.first_row; row < c.rows; ++row) {
      const int64_t kv = head / group, n = row + 1;
      const double alpha = c.gated ? in.alpha[static_cast<size_t>(kv)] : 1.0;
      const auto q = static_cast<size_t>(row * cols + head * dim);
      const auto k = [&](int64_t i) { return static_cast<size_t>(i * cols + q_cols + kv * dim); };
      const auto v = [&](int64_t i) { return k(i) + static_cast<size_t>(c.num_kv_heads * dim); };
      const auto o = static_cast<size_t>(row * q_cols + head * dim);
      Values logits(static_cast<size_t>(n)), d_weights(logits.size());
      for (int64_t i = 0; i < n; ++i)
        for (size_t e = 0; e < static_cast<size_t>(dim); ++e) {
          logits[static_cast<size_t>(i)] += 0.3f * double{in.qkv[q + e]} * in.qkv[k(i) + e];
          d_weights[static_cast<size_t>(i)] += double{in.d_out[o + e]} * in.qkv[v(i) + e];
        }
      const Values full = softmax(logits, [](int64_t) { return true; });
      const Values near =
          softmax(logits, [&](int64_t i) { return i < c.sinks || i >= n - std::max(1, c.recent); });
      double mean = 0, mean_near = 0;
      for (size_t i = 0; i < full.size(); ++i) {
        mean += full[i] * d_weights[i];
        mean_near += near[i] * d_weights[i];
      }
      d_alpha[static_cast<size_t>(kv)] += c.gated ? mean - mean_near : 0;
      for (int64_t j = 0; j < n; ++j) {
        const auto i = static_cast<size_t>(j);
        const double weight = alpha * full[i] + (1 - alpha) * near[i];
        const double d_logit = 0.3f * (alpha * full[i] * (d_weights[i] - mean) +
                                       (1 - alpha) * near[i] * (d_weights[i] - mean_near));
        if (!c.gated && row >= kFirstEffect)
          effects[static_cast<size_t>((head * nb + row / 64) * nb + j / 64)] +=
              std::abs(full[i] * (d_weights[i] - mean) / (1 - full[i] + 1e-5));
        for (size_t e = 0; e < static_cast<size_t>(dim); ++e) {
          out[o + e] += weight * in.qkv[v(j) + e];
          d_qkv[q + e] += d_logit * in.qkv[k(j) + e];
          d_qkv[k(j) + e] += d_logit * in.qkv[q + e];
          d_qkv[v(j) + e] += weight * in.d_out[o + e];
        }
      }
    }
  INFO(c);
  const auto wanted = static_cast<int64_t>(c.first_row * q_cols);
  check_close({got.out.begin() + wanted, got.out.end()}, {out.begin() + wanted, out.end()}, 1e-5);
  check_close(got.d_qkv, d_qkv, 1e-5);
  for (size_t i = 0; i < d_alpha.size(); ++i)
    CHECK(got.d_alpha[i] == Approx(d_alpha[i]).epsilon(1e-4).margin(1e-4));
  for (size_t i = 0; i < effects.size(); ++i)
    CHECK(got.effects[i] == Approx(effects[i]).epsilon(1e-3));
}

}  // namespace

TEST_CASE("GradientOps: products equal the sums in double, of every format",
          "[kernels][unit][device]") {
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  for (const QuantTraits& traits : quant_formats()) {
    Product product;
    product.add(traits.format, 33, 512);
    for (const int64_t m : {1, 3, 70}) check_product(*ops, product, m);
  }
  Product mixed;  // inputs that are no multiple of four, outputs of several formats
  mixed.add(QuantFormat::kF32, 5, 30);
  mixed.add(QuantFormat::kF16, 7, 30);
  mixed.add(QuantFormat::kF16, 2, 30);
  mixed.add(QuantFormat::kBF16, 9, 30);
  check_product(*ops, mixed, 11);
}

TEST_CASE("GradientOps: norms, gates, biases and rotations equal double",
          "[kernels][unit][device]") {
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  constexpr float kEps = 1e-5f;
  for (const int64_t cols : {6, 64, 1000}) {
    constexpr int64_t kNumRows = 37;
    Random random(static_cast<uint64_t>(cols));
    const auto x = random.values(kNumRows * cols, 1), dy = random.values(kNumRows * cols, 1);
    const auto old = random.values(kNumRows * cols, 1), weight = random.values(cols, 1);
    Values y(x.size()), dx(x.size()), biased(x.size());
    for (size_t row = 0; row < x.size(); row += static_cast<size_t>(cols)) {
      double squares = 0, along = 0;
      for (size_t c = 0; c < static_cast<size_t>(cols); ++c) {
        squares += double{x[row + c]} * x[row + c];
        along += double{dy[row + c]} * weight[c] * x[row + c];
      }
      const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + kEps);
      for (size_t c = 0; c < static_cast<size_t>(cols); ++c) {
        y[row + c] = x[row + c] * scale * weight[c];
        dx[row + c] =
            old[row + c] + scale * (double{dy[row + c]} * weight[c] -
                                    along * scale * scale / static_cast<double>(cols) * x[row + c]);
        biased[row + c] = double{x[row + c]} + weight[c];
      }
    }
    const Rows in(*ops, x, kNumRows), w(*ops, weight, 1), d_out(*ops, dy, kNumRows);
    const Rows out(*ops, nothing(kNumRows * cols), kNumRows), d_in(*ops, old, kNumRows);
    const float* values = w.view().f32_row(0);
    ops->rms_norm(in.view(), values, kEps, out.view());
    ops->rms_norm_backward(in.view(), values, kEps, d_out.view(), d_in.view());
    check_close(out.values(), y, 1e-6);
    check_close(d_in.values(), dx, 1e-6);
    ops->add_bias(in.view(), values);
    check_close(in.values(), biased, 1e-6);

    const int64_t n = cols / 2;
    Values gated(static_cast<size_t>(kNumRows * n)), d_gate_up(x.size());
    for (int64_t i = 0; i < kNumRows * n; ++i) {
      const auto g = static_cast<size_t>(i / n * cols + i % n), u = g + static_cast<size_t>(n);
      const double s = 1 / (1 + std::exp(-double{x[g]})), d = dy[static_cast<size_t>(i)];
      gated[static_cast<size_t>(i)] = x[g] * s * x[u];
      d_gate_up[g] = d * x[u] * s * (1 + x[g] * (1 - s));
      d_gate_up[u] = d * x[g] * s;
    }
    const Rows gate_up(*ops, x, kNumRows), product(*ops, nothing(kNumRows * n), kNumRows);
    const Rows d_product(
        *ops, {dy.begin(), dy.begin() + static_cast<int64_t>(gated.size())}, kNumRows);
    const Rows d_gates(*ops, nothing(kNumRows * cols), kNumRows);
    ops->silu_mul(gate_up.view(), product.view());
    ops->silu_mul_backward(gate_up.view(), d_product.view(), d_gates.view());
    check_close(product.values(), gated, 1e-6);
    check_close(d_gates.values(), d_gate_up, 1e-6);
  }
}

TEST_CASE("GradientOps: rotations equal double, and the way back is the transpose",
          "[kernels][unit][device]") {
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  const HeadShape heads{3, 1, 20};
  constexpr int64_t kNumRows = 50, kCols = 5 * 20;
  for (const RopePairing pairing : {RopePairing::kAdjacent, RopePairing::kHalves}) {
    RopeSpec rope{pairing, 12, 1.25f, {1, 0.5, 0.1, 0.02, 1e-3, 1e-4}};
    Random random(2);
    const auto x = random.values(kNumRows * kCols, 1), y = random.values(kNumRows * kCols, 1);
    Values rotated(x.begin(), x.end());
    const size_t step = pairing == RopePairing::kAdjacent ? 2 : 1;
    const size_t distance = pairing == RopePairing::kAdjacent ? 1 : 6;
    for (size_t row = 0; row < kNumRows; ++row)
      for (size_t head = 0; head < 4; ++head)
        for (size_t i = 0; i < 6; ++i) {
          const double angle = static_cast<double>(row) * rope.inv_freq[i];
          const size_t a = row * kCols + head * 20 + i * step, b = a + distance;
          rotated[a] = 1.25 * (x[a] * std::cos(angle) - x[b] * std::sin(angle));
          rotated[b] = 1.25 * (x[a] * std::sin(angle) + x[b] * std::cos(angle));
        }
    const Rows there(*ops, x, kNumRows), back(*ops, y, kNumRows);
    ops->rotate(rope, heads, GradientOps::Turn::kForward, there.view());
    ops->rotate(rope, heads, GradientOps::Turn::kBack, back.view());
    check_close(there.values(), rotated, 1e-6);
    double forward = 0, transposed = 0;
    const std::vector<float> of_x = there.values(), of_y = back.values();
    for (size_t i = 0; i < x.size(); ++i) {
      forward += double{of_x[i]} * y[i];
      transposed += double{of_y[i]} * x[i];
    }
    CHECK(forward == Approx(transposed).epsilon(1e-5));
  }
}

TEST_CASE("GradientOps: attention there and back equals double", "[kernels][unit][device]") {
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  for (const AttentionCase& c : kAttentionCases) check_attention(*ops, c);
}

TEST_CASE("GradientOps: attention over many tiles equals the CPU's", "[kernels][cuda]") {
  ThreadPool pool(0);
  const auto ops = testing::cuda_gradient_ops_or_skip();
  if (!ops) return;
  const auto cpu = make_cpu_gradient_ops(pool);
  for (const bool gated : {false, true}) {
    const AttentionCase c{2085, 32, 8, 64, 70, gated, 16, 64};
    const AttentionResults got = run(*ops, c), expected = run(*cpu, c);
    const int64_t unwanted = c.first_row / 64 * 64 * c.num_heads * c.head_dim;
    INFO(c);
    check_close({got.out.begin() + unwanted, got.out.end()},
                {expected.out.begin() + unwanted, expected.out.end()},
                1e-5);
    check_close(got.d_qkv, {expected.d_qkv.begin(), expected.d_qkv.end()}, 1e-5);
    for (size_t i = 0; i < got.d_alpha.size(); ++i)
      CHECK(got.d_alpha[i] == Approx(expected.d_alpha[i]).epsilon(1e-4).margin(1e-3));
    double worst = 0;
    for (size_t i = 0; i < got.effects.size(); ++i)
      worst = std::max(worst, std::abs(got.effects[i] / expected.effects[i] - 1));
    CHECK(worst <= 1e-3);
  }
}
