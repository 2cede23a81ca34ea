// MoA: a span alpha + beta * N per head over a context of N tokens, chosen so that what the spans
// hide mattered least to the model's own answers. Source: arXiv 2406.14909, sections 4.1 and 4.2.
//
//   samples --gradients--> masking effects per entry, summed by blocks     profile_effects
//           --rules------> cost per head and rule at each length           span_costs
//           --bound------> one rule per head                               select_spans
//
// Differences to the paper, all for a cache that keeps by KV head: rules are per KV head; a row's
// window follows from the row's own position, not from the final length; the choice is made by a
// price on density in place of an integer program.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/attention/head_table.h"
#include "engine/calibrate/gradients.h"
#include "engine/calibrate/passkeys.h"
#include "engine/calibrate/span_search.h"

namespace headwater {

enum class GroupImportance : uint8_t { kSum, kMax };  // of the query heads of a KV head

struct SpanRule {
  int32_t alpha = 0;
  double beta = 0;
  bool operator==(const SpanRule&) const = default;
};

// Sums of masking effects of one length, per KV head: [num_layers * num_kv_heads, blocks, blocks],
// mean of the samples.
struct EffectProfile {
  int32_t length = 0;  // of the longest sample
  int32_t num_blocks = 0;
  int32_t num_heads = 0;  // of KV, all layers
  std::vector<double> effects;
};

// The loss is the mean cross entropy at the samples' rows, whose tokens should be the model's own.
// answers_only: effects of answer rows alone, for caches whose prompts see everything.
EffectProfile profile_effects(
    GradientModel& model,
    std::span<const CalibrationSample> samples,
    GroupImportance importance,
    bool answers_only,
    const std::function<void(int64_t done, int64_t total)>& progress = {});

// alpha from -shortest to longest in steps, beta in eighths, without those that hold nothing at the
// shortest length or more than everything at the longest.
std::vector<SpanRule> span_candidates(int32_t shortest, int32_t longest, int32_t alpha_step);

// Tokens of N that a head holds by the rule as it is deployed (moa_rule in engine/attention).
int32_t span_tokens(const SpanRule& rule, int32_t num_tokens);

// Of every head and rule: the effects that the rule hides, at each length as a part of all effects
// of that length, summed over lengths. Density: span_tokens(N) / N, mean of density_lengths.
SpanChoices span_choices(std::span<const EffectProfile> profiles,
                         std::span<const SpanRule> rules,
                         std::span<const int32_t> density_lengths,
                         int32_t num_layers);

// Heads whose span is everything are full; each other rule is a class of its own.
HeadTable moa_table(std::span<const SpanRule> rules, const HeadTableModel& model);

// The published artefact {"alphas": [[..]], "betas": [[..]]}, one row per layer, one column per
// query head. rules: [num_layers, num_kv_heads]
std::string moa_json(std::span<const SpanRule> rules, int32_t num_kv_heads, int32_t num_heads);

}  // namespace headwater
