// One rule per head under a bound on the mean density. With a price on density the problem falls
// apart into heads (or, where a layer may use few distinct rules, into layers); the price is found
// by bisection, and what it leaves of the bound is filled greedily.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace headwater {

struct SpanChoices {
  int32_t num_layers = 0;
  int32_t heads_per_layer = 0;
  std::vector<double> density;  // [rules] of the context, 0..1
  std::vector<double> cost;     // [num_layers * heads_per_layer, rules]

  double cost_of(int64_t head, int32_t rule) const {
    return cost[static_cast<size_t>(head) * density.size() + static_cast<size_t>(rule)];
  }
};

struct SpanSelection {
  std::vector<int32_t> rules;  // [heads]
  double cost = 0;             // total
  double density = 0;          // mean over heads
};

// The best choice at a price per unit of mean density. rules_per_layer: distinct rules that a layer
// may use, 1 or 2; 0 = any number. Ties: the sparser rule.
SpanSelection select_at_price(const SpanChoices& choices, double price, int32_t rules_per_layer);

// The cheapest choice found whose mean density is at most max_density. If no choice is sparse
// enough, the sparsest one.
SpanSelection select_spans(const SpanChoices& choices, double max_density, int32_t rules_per_layer);

}  // namespace headwater
