#include "engine/calibrate/span_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "kernels/base/check.h"

namespace headwater {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

SpanSelection with_totals(const SpanChoices& choices, std::vector<int32_t> rules) {
  SpanSelection selection;
  for (size_t head = 0; head < rules.size(); ++head) {
    selection.cost += choices.cost_of(static_cast<int64_t>(head), rules[head]);
    selection.density += choices.density[static_cast<size_t>(rules[head])];
  }
  selection.density /= static_cast<double>(rules.size());
  selection.rules = std::move(rules);
  return selection;
}

class Prices {
 public:
  Prices(const SpanChoices& choices, double price)
      : choices_(choices), price_(price / (choices.num_layers * choices.heads_per_layer)) {}

  double of(int64_t head, int32_t rule) const {
    return choices_.cost_of(head, rule) + price_ * density(rule);
  }
  // Whether a head does better by `rule` than by `other`.
  bool better(int64_t head, int32_t rule, int32_t other) const {
    const double a = of(head, rule), b = of(head, other);
    return a != b ? a < b : density(rule) < density(other);
  }
  double density(int32_t rule) const { return choices_.density[static_cast<size_t>(rule)]; }

 private:
  const SpanChoices& choices_;
  double price_;  // per unit of one head's density
};

// The best rules of a layer's heads out of one set of two (first == second: of one).
struct LayerPlan {
  std::vector<int32_t> rules;
  double value = kInfinity;
  double density = kInfinity;
};

void try_pair(const Prices& prices,
              int64_t first_head,
              int32_t heads,
              int32_t a,
              int32_t b,
              LayerPlan& best) {
  LayerPlan plan{{}, 0, 0};
  for (int64_t head = first_head; head < first_head + heads; ++head) {
    const int32_t rule = prices.better(head, b, a) ? b : a;
    plan.rules.push_back(rule);
    plan.value += prices.of(head, rule);
    plan.density += prices.density(rule);
    if (plan.value > best.value) return;
  }
  if (plan.value < best.value || plan.density < best.density) best = std::move(plan);
}

int32_t distinct(const std::vector<int32_t>& rules, int64_t first, int32_t count) {
  const std::set<int32_t> layer(rules.begin() + first, rules.begin() + first + count);
  return static_cast<int32_t>(layer.size());
}

// Gives heads wider rules, best gain per density first, while the bound allows.
void fill(const SpanChoices& choices,
          double max_density,
          int32_t rules_per_layer,
          SpanSelection& selection) {
  const auto num_heads = static_cast<int64_t>(selection.rules.size());
  const auto num_rules = static_cast<int32_t>(choices.density.size());
  for (;;) {
    double best_gain = 0;
    int64_t best_head = -1;
    int32_t best_rule = 0;
    for (int64_t head = 0; head < num_heads; ++head) {
      int32_t& current = selection.rules[static_cast<size_t>(head)];
      const int32_t kept = current;
      for (int32_t rule = 0; rule < num_rules; ++rule) {
        const double saved = choices.cost_of(head, kept) - choices.cost_of(head, rule);
        const double wider =
            choices.density[static_cast<size_t>(rule)] - choices.density[static_cast<size_t>(kept)];
        if (saved <= 0 || selection.density + wider / static_cast<double>(num_heads) > max_density)
          continue;
        const double gain = wider > 0 ? saved / wider : kInfinity;
        if (gain <= best_gain) continue;
        if (rules_per_layer > 0) {
          current = rule;
          const int64_t first = head / choices.heads_per_layer * choices.heads_per_layer;
          const bool allowed =
              distinct(selection.rules, first, choices.heads_per_layer) <= rules_per_layer;
          current = kept;
          if (!allowed) continue;
        }
        best_gain = gain;
        best_head = head;
        best_rule = rule;
      }
    }
    if (best_head < 0) return;
    selection.rules[static_cast<size_t>(best_head)] = best_rule;
    selection = with_totals(choices, std::move(selection.rules));
  }
}

}  // namespace

SpanSelection select_at_price(const SpanChoices& choices, double price, int32_t rules_per_layer) {
  HW_CHECK(rules_per_layer >= 0 && rules_per_layer <= 2, "rules of a layer", rules_per_layer);
  const Prices prices(choices, price);
  const auto num_rules = static_cast<int32_t>(choices.density.size());
  std::vector<int32_t> rules;
  for (int32_t layer = 0; layer < choices.num_layers; ++layer) {
    const int64_t first = int64_t{layer} * choices.heads_per_layer;
    if (rules_per_layer == 0) {
      for (int64_t head = first; head < first + choices.heads_per_layer; ++head) {
        int32_t best = 0;
        for (int32_t rule = 1; rule < num_rules; ++rule)
          if (prices.better(head, rule, best)) best = rule;
        rules.push_back(best);
      }
      continue;
    }
    LayerPlan best;
    for (int32_t a = 0; a < num_rules; ++a)
      for (int32_t b = a; b < (rules_per_layer == 1 ? a + 1 : num_rules); ++b)
        try_pair(prices, first, choices.heads_per_layer, a, b, best);
    rules.insert(rules.end(), best.rules.begin(), best.rules.end());
  }
  return with_totals(choices, std::move(rules));
}

SpanSelection select_spans(const SpanChoices& choices,
                           double max_density,
                           int32_t rules_per_layer) {
  constexpr int kDoublings = 80, kHalvings = 60;
  SpanSelection selection = select_at_price(choices, 0, rules_per_layer);
  if (selection.density <= max_density) return selection;
  double low = 0, high = 1e-6;
  for (int i = 0; i < kDoublings; ++i, high *= 2) {
    selection = select_at_price(choices, high, rules_per_layer);
    if (selection.density <= max_density) break;
    low = high;
  }
  if (selection.density > max_density) return selection;
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (low + high) / 2;
    SpanSelection next = select_at_price(choices, middle, rules_per_layer);
    if (next.density <= max_density) {
      high = middle;
      selection = std::move(next);
    } else {
      low = middle;
    }
  }
  fill(choices, max_density, rules_per_layer, selection);
  return selection;
}

}  // namespace headwater
