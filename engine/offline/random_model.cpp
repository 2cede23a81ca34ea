#include "engine/offline/random_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr ModelShape kShapes[] = {
    {"llama3-8b", 32, 4096, 14336, 32, 8, 128, 128256, false},
    {"llama3.2-1b", 16, 2048, 8192, 32, 8, 64, 128256, true},
    {"smollm2-135m", 30, 576, 1536, 9, 3, 64, 49152, true},
};
constexpr WeightMix kMixes[] = {
    {"f32", QuantFormat::kF32, QuantFormat::kF32},
    {"f16", QuantFormat::kF16, QuantFormat::kF16},
    {"bf16", QuantFormat::kBF16, QuantFormat::kBF16},
    {"q8_0", QuantFormat::kQ8_0, QuantFormat::kQ8_0},
    {"q4_0", QuantFormat::kQ4_0, QuantFormat::kQ4_0},
    {"q4_1", QuantFormat::kQ4_1, QuantFormat::kQ4_1},
    {"q4_k", QuantFormat::kQ4_K, QuantFormat::kQ6_K},
    {"q6_k", QuantFormat::kQ6_K, QuantFormat::kQ6_K},
};

constexpr uint16_t kSmallHalf = 0x1000;  // 2^-11: scales of blocks

// Byte offsets of the f16 scales of a block; random bits there would make infinities.
struct ScaleOffsets {
  QuantFormat format;
  std::array<int32_t, 2> at;
};
constexpr ScaleOffsets kScales[] = {{QuantFormat::kQ8_0, {0, 0}},
                                    {QuantFormat::kQ4_0, {0, 0}},
                                    {QuantFormat::kQ4_1, {0, 2}},
                                    {QuantFormat::kQ4_K, {0, 2}},
                                    {QuantFormat::kQ6_K, {208, 208}}};

// Scalars of either sign between 2^-6 and 2^-5.
template <typename T>
void keep_small(std::byte* bytes, size_t count, T mask, T exponent) {
  for (size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
    value = static_cast<T>((value & mask) | exponent);
    std::memcpy(bytes + i * sizeof(T), &value, sizeof(T));
  }
}

// A period of whole blocks, repeated.
std::vector<std::byte> random_weights(QuantFormat format, int64_t bytes) {
  constexpr int64_t kPeriodBlocks = 1 << 16;
  const QuantTraits& traits = quant_traits(format);
  const int64_t period = kPeriodBlocks * traits.block_bytes;
  std::vector<std::byte> pool(static_cast<size_t>(std::max(bytes, period)));
  std::mt19937_64 random(7);
  for (int64_t i = 0; i + 8 <= period; i += 8) {
    const uint64_t word = random();
    std::memcpy(pool.data() + i, &word, 8);
  }
  const auto count = static_cast<size_t>(kPeriodBlocks);
  if (format == QuantFormat::kF32) {
    keep_small<uint32_t>(pool.data(), count, 0x807FFFFF, 121u << 23);
  } else if (format == QuantFormat::kF16) {
    keep_small<uint16_t>(pool.data(), count, 0x83FF, 9 << 10);
  } else if (format == QuantFormat::kBF16) {
    keep_small<uint16_t>(pool.data(), count, 0x807F, 121 << 7);
  }
  for (const ScaleOffsets& scales : kScales)
    for (int64_t b = 0; scales.format == format && b < kPeriodBlocks; ++b)
      for (const int32_t at : scales.at)
        std::memcpy(pool.data() + b * traits.block_bytes + at, &kSmallHalf, 2);
  for (int64_t at = period; at < bytes; at += period)
    std::memcpy(pool.data() + at, pool.data(), static_cast<size_t>(std::min(period, bytes - at)));
  return pool;
}

template <typename Row>
const Row& find(std::span<const Row> table, std::string_view name, const char* flag) {
  std::string known;
  for (const Row& row : table) {
    if (row.name == name) return row;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw ConfigError(std::string(flag) + ": must be one of " + known + ", got \"" +
                    std::string(name) + "\"");
}

}  // namespace

std::span<const ModelShape> model_shapes() { return kShapes; }
std::span<const WeightMix> weight_mixes() { return kMixes; }

std::unique_ptr<RandomModel> make_random_model(std::string_view shape_name,
                                               std::string_view weights,
                                               int32_t max_positions) {
  const ModelShape& shape = find(model_shapes(), shape_name, "--shape");
  const WeightMix& mix = find(weight_mixes(), weights, "--weights");
  auto model = std::make_unique<RandomModel>();
  LoadedModel& files = model->files;
  ModelSpec& spec = files.spec;
  spec.architecture = "llama";
  spec.vocab_size = shape.vocab_size;
  spec.hidden_dim = shape.hidden_dim;
  spec.max_positions = max_positions;
  spec.tied_embedding = shape.tied_embedding;
  RopeSpec rope;
  rope.rotary_dim = shape.head_dim;
  for (int32_t i = 0; i < shape.head_dim / 2; ++i)
    rope.inv_freq.push_back(std::pow(500000.0, -2.0 * i / shape.head_dim));
  spec.ropes.push_back(std::move(rope));

  const int64_t largest =
      std::max(int64_t{shape.vocab_size}, int64_t{shape.ffn_dim}) * shape.hidden_dim;
  const auto pool_of = [&](QuantFormat format) {
    const QuantTraits& traits = quant_traits(format);
    return model->pools
        .emplace_back(random_weights(format, largest / traits.block_elements * traits.block_bytes))
        .data();
  };
  const std::byte* matrices = pool_of(mix.matrices);
  const std::byte* output = mix.output == mix.matrices ? matrices : pool_of(mix.output);
  std::vector<float>& ones = files.owned.emplace_back(static_cast<size_t>(shape.hidden_dim), 1.0f);
  const WeightView norm{QuantFormat::kF32, 1, shape.hidden_dim, ones.data()};
  const auto matrix = [&](int64_t rows, int64_t cols) {
    const WeightView view{mix.matrices, rows, cols, matrices};
    model->read_bytes += view.bytes();
    model->num_matrix_parameters += rows * cols;
    return view;
  };
  const int64_t q_rows = int64_t{shape.num_heads} * shape.head_dim;
  const int64_t kv_rows = int64_t{shape.num_kv_heads} * shape.head_dim;
  for (int32_t i = 0; i < shape.num_layers; ++i) {
    LayerSpec& layer = spec.layers.emplace_back();
    layer.heads = {shape.num_heads, shape.num_kv_heads, shape.head_dim};
    layer.ffn_dim = shape.ffn_dim;
    LayerWeights& w = files.weights.layers.emplace_back();
    w.attn_norm = w.ffn_norm = norm;
    w.q = matrix(q_rows, shape.hidden_dim);
    w.k = matrix(kv_rows, shape.hidden_dim);
    w.v = matrix(kv_rows, shape.hidden_dim);
    w.o = matrix(shape.hidden_dim, q_rows);
    w.gate = matrix(shape.ffn_dim, shape.hidden_dim);
    w.up = matrix(shape.ffn_dim, shape.hidden_dim);
    w.down = matrix(shape.hidden_dim, shape.ffn_dim);
  }
  files.weights.output_norm = norm;
  files.weights.output = {mix.output, shape.vocab_size, shape.hidden_dim, output};
  files.weights.token_embedding =
      shape.tied_embedding ? files.weights.output
                           : WeightView{mix.matrices, shape.vocab_size, shape.hidden_dim, matrices};
  model->read_bytes += files.weights.output.bytes();
  model->num_output_parameters = int64_t{shape.vocab_size} * shape.hidden_dim;
  files.num_parameters = model->num_matrix_parameters + model->num_output_parameters;
  files.weight_bytes = model->read_bytes;
  files.weight_format = std::string(mix.name);
  return model;
}

}  // namespace headwater
