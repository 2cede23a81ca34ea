#include "engine/calibrate/moa.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "engine/attention/head_table_published.h"
#include "kernels/base/check.h"
#include "kvcache/kv_geometry.h"

namespace headwater {
namespace {

constexpr int32_t kBlock = MaskingEffects::kBlockTokens;

kv::RetentionRule retention(const SpanRule& rule) { return moa_rule(rule.alpha, rule.beta); }

// Gradient of the mean cross entropy of the tokens behind the sample's rows, by hidden(): the rows
// in between get zero.
std::vector<float> loss_gradient(const GradientModel& model, const CalibrationSample& sample) {
  const auto cols = static_cast<size_t>(model.spec().hidden_dim);
  const auto vocab = static_cast<size_t>(model.spec().vocab_size);
  const std::vector<float> hidden = model.hidden();
  const auto offset = [&](int32_t row) {
    return hidden.begin() + static_cast<int64_t>(static_cast<size_t>(row - sample.rows[0]) * cols);
  };
  std::vector<float> picked;
  for (const int32_t row : sample.rows)
    picked.insert(picked.end(), offset(row), offset(row) + static_cast<int64_t>(cols));
  std::vector<float> d_logits = model.logits(picked);
  std::vector<double> parts(vocab);
  for (size_t r = 0; r < sample.rows.size(); ++r) {
    float* row = d_logits.data() + r * vocab;
    const float largest = *std::max_element(row, row + vocab);
    double sum = 0;
    for (size_t i = 0; i < vocab; ++i) sum += parts[i] = std::exp(double{row[i]} - largest);
    const double scale = 1.0 / static_cast<double>(sample.rows.size());
    for (size_t i = 0; i < vocab; ++i) row[i] = static_cast<float>(parts[i] / sum * scale);
    row[sample.tokens[static_cast<size_t>(sample.rows[r]) + 1]] -= static_cast<float>(scale);
  }
  const std::vector<float> d_picked = model.logits_backward(d_logits);
  std::vector<float> d_hidden(hidden.size(), 0.0f);
  for (size_t r = 0; r < sample.rows.size(); ++r)
    std::copy_n(d_picked.begin() + static_cast<int64_t>(r * cols),
                cols,
                d_hidden.begin() + (offset(sample.rows[r]) - hidden.begin()));
  return d_hidden;
}

// How many of a row block's entries in each column block the rule hides: [num_blocks (row),
// num_blocks (column)] as parts of the entries that causality allows.
std::vector<double> hidden_parts(const SpanRule& rule, int32_t num_blocks) {
  const kv::RetentionRule retained = retention(rule);
  std::vector<double> parts(static_cast<size_t>(num_blocks) * static_cast<size_t>(num_blocks));
  for (int32_t row = 0; row < num_blocks * kBlock; ++row) {
    const int32_t window = retained.window_start(row);
    for (int32_t block = 0; block * kBlock < window; ++block) {
      const int32_t begin = std::max(block * kBlock, retained.sink_tokens);
      const int32_t end = std::min(window, (block + 1) * kBlock);
      const int32_t allowed = row / kBlock == block ? row % kBlock + 1 : kBlock;
      if (end > begin)
        parts[static_cast<size_t>(row / kBlock * num_blocks + block)] +=
            static_cast<double>(end - begin) / allowed / kBlock;
    }
  }
  return parts;
}

}  // namespace

EffectProfile profile_effects(GradientModel& model,
                              std::span<const CalibrationSample> samples,
                              GroupImportance importance,
                              bool answers_only,
                              const std::function<void(int64_t, int64_t)>& progress) {
  HW_CHECK(!samples.empty(), "samples of a length", samples.size());
  const HeadShape& heads = model.spec().layers[0].heads;
  const auto num_layers = static_cast<int32_t>(model.spec().layers.size());
  EffectProfile profile;
  for (const CalibrationSample& sample : samples)
    profile.length = std::max(profile.length, static_cast<int32_t>(sample.tokens.size()));
  profile.num_blocks = (profile.length + kBlock - 1) / kBlock;
  profile.num_heads = num_layers * heads.num_kv_heads;
  MaskingEffects effects;
  effects.num_blocks = profile.num_blocks;
  const auto map =
      static_cast<size_t>(profile.num_blocks) * static_cast<size_t>(profile.num_blocks);
  effects.sums.resize(map * static_cast<size_t>(num_layers * heads.num_heads));
  for (size_t i = 0; i < samples.size(); ++i) {
    effects.first_row = answers_only ? samples[i].rows[0] : 0;
    model.forward(samples[i].tokens, samples[i].rows[0], nullptr);
    model.backward(loss_gradient(model, samples[i]), {nullptr, &effects, nullptr});
    if (progress) progress(static_cast<int64_t>(i) + 1, static_cast<int64_t>(samples.size()));
  }
  profile.effects.resize(map * static_cast<size_t>(profile.num_heads));
  const int32_t group = heads.num_heads / heads.num_kv_heads;
  for (size_t head = 0; head < effects.sums.size() / map; ++head) {
    const size_t kv = head / static_cast<size_t>(group);
    for (size_t i = 0; i < map; ++i) {
      double& to = profile.effects[kv * map + i];
      const double effect = effects.sums[head * map + i] / static_cast<double>(samples.size());
      to = importance == GroupImportance::kSum ? to + effect : std::max(to, effect);
    }
  }
  return profile;
}

std::vector<SpanRule> span_candidates(int32_t shortest, int32_t longest, int32_t alpha_step) {
  std::vector<SpanRule> rules;
  constexpr int kParts = 8;
  for (int32_t alpha = -shortest / alpha_step * alpha_step; alpha <= longest; alpha += alpha_step)
    for (int part = 0; part <= kParts; ++part) {
      const SpanRule rule{alpha, static_cast<double>(part) / kParts};
      if (rule.alpha + rule.beta * shortest > 0 && rule.alpha + rule.beta * longest <= longest)
        rules.push_back(rule);
    }
  return rules;
}

int32_t span_tokens(const SpanRule& rule, int32_t num_tokens) {
  const kv::RetentionRule retained = retention(rule);
  const int32_t window = retained.window_start(num_tokens - 1);
  return num_tokens - window + std::min(retained.sink_tokens, window);
}

SpanChoices span_choices(std::span<const EffectProfile> profiles,
                         std::span<const SpanRule> rules,
                         std::span<const int32_t> density_lengths,
                         int32_t num_layers) {
  HW_CHECK(!profiles.empty() && !density_lengths.empty(), "lengths", density_lengths.size());
  SpanChoices choices;
  choices.num_layers = num_layers;
  choices.heads_per_layer = profiles[0].num_heads / num_layers;
  for (const SpanRule& rule : rules) {
    double density = 0;
    for (const int32_t length : density_lengths)
      density += static_cast<double>(span_tokens(rule, length)) / length;
    choices.density.push_back(density / static_cast<double>(density_lengths.size()));
  }
  choices.cost.resize(static_cast<size_t>(profiles[0].num_heads) * rules.size());
  for (const EffectProfile& profile : profiles) {
    double total = 0;
    for (const double effect : profile.effects) total += effect;
    const auto map =
        static_cast<size_t>(profile.num_blocks) * static_cast<size_t>(profile.num_blocks);
    for (size_t r = 0; r < rules.size(); ++r) {
      const std::vector<double> parts = hidden_parts(rules[r], profile.num_blocks);
      for (size_t head = 0; head < static_cast<size_t>(profile.num_heads); ++head) {
        double cost = 0;
        for (size_t i = 0; i < map; ++i) cost += parts[i] * profile.effects[head * map + i];
        if (total > 0) choices.cost[head * rules.size() + r] += cost / total;
      }
    }
  }
  return choices;
}

HeadTable moa_table(std::span<const SpanRule> rules, const HeadTableModel& model) {
  HeadTable table;
  table.method = "moa";
  table.model = model;
  std::vector<SpanRule> named;
  for (const SpanRule& rule : rules) {
    if (rule.alpha >= 0 && rule.beta == 1) {
      table.heads.push_back(HeadTable::kFull);
      continue;
    }
    const auto found = std::find(named.begin(), named.end(), rule);
    table.heads.push_back(HeadTable::kFirstNamed + static_cast<int32_t>(found - named.begin()));
    if (found != named.end()) continue;
    named.push_back(rule);
    char name[48];
    std::snprintf(name, sizeof(name), "%d+%gN", rule.alpha, rule.beta);
    table.classes.push_back({name, retention(rule)});
  }
  return table;
}

std::string moa_json(std::span<const SpanRule> rules, int32_t num_kv_heads, int32_t num_heads) {
  const auto grid = [&](const auto& value) {
    std::string text = "[";
    for (size_t first = 0; first < rules.size(); first += static_cast<size_t>(num_kv_heads)) {
      text += first == 0 ? "[" : ",\n [";
      for (int32_t head = 0; head < num_heads; ++head) {
        const int32_t kv = head / (num_heads / num_kv_heads);
        char number[32];
        std::snprintf(number, sizeof(number), "%g", value(rules[first + static_cast<size_t>(kv)]));
        text.append(head == 0 ? "" : ", ").append(number);
      }
      text += "]";
    }
    return text + "]";
  };
  return "{\"alphas\":\n" + grid([](const SpanRule& rule) { return double(rule.alpha); }) +
         ",\n\"betas\":\n" + grid([](const SpanRule& rule) { return rule.beta; }) + "}\n";
}

}  // namespace headwater
