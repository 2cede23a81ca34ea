#include "engine/calibrate/razor_scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "engine/text/utf8.h"
#include "kernels/base/check.h"

namespace headwater {
namespace {

// Collects the two diagonals of one head after another while the model reads.
class Collector {
 public:
  Collector(Probe& probe, int32_t num_tokens, int32_t block, bool has_bos)
      : ops_(probe.ops()), num_tokens_(num_tokens), block_(block), first_(has_bos ? 1 : 0) {
    for (const LayerSpec& layer : probe.spec().layers) {
      keys_.emplace_back(static_cast<size_t>(num_tokens) *
                         static_cast<size_t>(layer.heads.num_kv_heads * layer.heads.head_dim));
      echo_.emplace_back(static_cast<size_t>(layer.heads.num_heads));
      induction_.emplace_back(static_cast<size_t>(layer.heads.num_heads));
    }
  }

  void observe(const AttentionView& view, const StepView& step) {
    std::vector<int32_t> positions(static_cast<size_t>(step.num_rows));
    ops_.download(positions.data(), step.positions, step.num_rows * int64_t{sizeof(int32_t)});
    const std::vector<float> q = host(view.q);
    const std::vector<float> k = host(view.k);
    const std::vector<float> lse = host(view.lse);
    ops_.synchronize();
    const auto layer = static_cast<size_t>(view.layer);
    std::ranges::copy(k, keys_[layer].begin() + positions[0] * view.k.cols);

    const HeadShape& heads = view.heads;
    const int32_t group = heads.num_heads / heads.num_kv_heads;
    for (int64_t row = 0; row < step.num_rows; ++row) {
      const int32_t i = positions[static_cast<size_t>(row)] - first_;
      if (i < block_) continue;
      for (int32_t head = 0; head < heads.num_heads; ++head) {
        const float* query = q.data() + row * view.q.cols + int64_t{head} * heads.head_dim;
        const float log_sum = lse[static_cast<size_t>(row * heads.num_heads + head)];
        const auto attention = [&](int32_t j) {
          const float* key = keys_[layer].data() + (j + first_) * view.k.cols +
                             int64_t{head / group} * heads.head_dim;
          const float product = std::inner_product(query, query + heads.head_dim, key, 0.0f);
          float logit = view.scale * product;
          if (view.softcap > 0) logit = view.softcap * std::tanh(logit / view.softcap);
          return std::exp(double{logit - log_sum});
        };
        for (int32_t j = i - block_; j >= 0; j -= block_) {
          echo_[layer][static_cast<size_t>(head)] += attention(j);
          induction_[layer][static_cast<size_t>(head)] += attention(j + 1);
        }
      }
    }
  }

  RazorScores scores(const ModelSpec& spec) const {
    const int32_t rows = num_tokens_ - first_ - block_;
    const HeadShape& heads = spec.layers[0].heads;
    const auto layers = static_cast<int32_t>(spec.layers.size());
    RazorScores scores{{layers, heads.num_kv_heads}, {layers, heads.num_kv_heads}};
    const int32_t group = heads.num_heads / heads.num_kv_heads;
    for (int32_t layer = 0; layer < layers; ++layer) {
      for (int32_t head = 0; head < heads.num_heads; ++head) {
        const auto keep_best = [&](double& score, const std::vector<std::vector<double>>& sums) {
          score =
              std::max(score, sums[static_cast<size_t>(layer)][static_cast<size_t>(head)] / rows);
        };
        keep_best(scores.echo.at(layer, head / group), echo_);
        keep_best(scores.induction.at(layer, head / group), induction_);
      }
    }
    return scores;
  }

 private:
  // Rows of a matrix, packed.
  std::vector<float> host(const Matrix& matrix) const {
    HW_CHECK(matrix.dtype == DType::kF32, "activations that are observed are F32");
    std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.cols));
    for (int64_t row = 0; row < matrix.rows; ++row)
      ops_.download(values.data() + row * matrix.cols,
                    matrix.f32_row(row),
                    matrix.cols * int64_t{sizeof(float)});
    return values;
  }

  Ops& ops_;
  int32_t num_tokens_, block_, first_;
  std::vector<std::vector<float>> keys_;               // [layer][position, kv head, head_dim]
  std::vector<std::vector<double>> echo_, induction_;  // [layer][query head], sums over rows
};

// A token that its own text gives.
bool is_ordinary(const Tokenizer& tokenizer, int32_t id) {
  if (tokenizer.is_control(id)) return false;
  const std::string text = tokenizer.token_bytes(id, false);
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; };
  if (text.empty() || std::ranges::any_of(text, control) || utf8::sanitize(text) != text)
    return false;
  return tokenizer.encode(text, false, false) == std::vector<int32_t>{id};
}

std::vector<int32_t> by_score(const HeadGrid& grid) {
  std::vector<int32_t> order(grid.values.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) {
    return grid.values[static_cast<size_t>(a)] > grid.values[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace

std::vector<int32_t> ordinary_tokens(const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (is_ordinary(tokenizer, id)) ids.push_back(id);
  return ids;
}

std::vector<int32_t> repeated_block(
    std::span<const int32_t> ids, int32_t bos, int32_t block, int32_t repeats, uint64_t seed) {
  HW_CHECK(!ids.empty() && block > 0 && repeats > 0, "a block to repeat", block);
  std::mt19937_64 random(seed);
  std::vector<int32_t> once(static_cast<size_t>(block));
  for (int32_t& id : once) id = ids[random() % ids.size()];
  std::vector<int32_t> tokens;
  if (bos >= 0) tokens.push_back(bos);
  for (int32_t i = 0; i < repeats; ++i) tokens.insert(tokens.end(), once.begin(), once.end());
  return tokens;
}

RazorScores razor_scores(Probe& probe,
                         std::span<const int32_t> tokens,
                         int32_t block,
                         bool has_bos,
                         const std::function<void(int64_t, int64_t)>& progress) {
  const auto num_tokens = static_cast<int32_t>(tokens.size());
  HW_CHECK(num_tokens - has_bos > block, "tokens behind the first block of", block);
  Collector collector(probe, num_tokens, block, has_bos);
  const auto layers = static_cast<int64_t>(probe.spec().layers.size());
  const int64_t total = num_tokens * layers;
  int64_t done = 0;
  probe.model().observe_attention([&](const AttentionView& view, const StepView& step) {
    collector.observe(view, step);
    done += step.num_rows;
    if (progress) progress(done, total);
  });
  probe.read(tokens, 0);
  probe.model().observe_attention({});
  return collector.scores(probe.spec());
}

RazorChoice choose_razor(const RazorScores& scores, double induction_part, double echo_part) {
  const std::vector<int32_t> induction = by_score(scores.induction);
  const std::vector<int32_t> echo = by_score(scores.echo);
  const auto num_heads = static_cast<double>(induction.size());
  const auto count = [&](double part) {
    return static_cast<int64_t>(std::ceil(std::clamp(part, 0.0, 1.0) * num_heads - 1e-9));
  };
  RazorChoice choice;
  const auto add = [&](std::span<const int32_t> heads) {
    for (const int32_t head : heads)
      if (!std::ranges::count(choice.ranking, head)) choice.ranking.push_back(head);
  };
  add(std::span(induction).first(static_cast<size_t>(count(induction_part))));
  add(std::span(echo).first(static_cast<size_t>(count(echo_part))));
  choice.num_full = static_cast<int32_t>(choice.ranking.size());
  add(induction);
  return choice;
}

}  // namespace headwater
