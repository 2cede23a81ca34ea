// MoA: the effects of a model, what rules hide of them, and the choice of rules against brute
// force.
#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "engine/calibrate/moa.h"
#include "tests/support/gradient_device.h"
#include "tests/support/random.h"
#include "tests/support/tiny_model.h"

using namespace headwater;
using testing::Random;

namespace {

constexpr SpanRule kDense{0, 1.0};

// Effects of one head: `near` in the diagonal blocks, `far` elsewhere.
EffectProfile even_profile(int32_t num_blocks, int32_t num_heads, double near, double far) {
  EffectProfile profile;
  profile.length = num_blocks * 64;
  profile.num_blocks = num_blocks;
  profile.num_heads = num_heads;
  for (int32_t head = 0; head < num_heads; ++head)
    for (int32_t row = 0; row < num_blocks; ++row)
      for (int32_t column = 0; column < num_blocks; ++column)
        profile.effects.push_back(column > row ? 0 : column == row ? near : far);
  return profile;
}

SpanChoices random_choices(uint64_t seed, int32_t layers, int32_t heads, int32_t rules) {
  Random random(seed);
  SpanChoices choices;
  choices.num_layers = layers;
  choices.heads_per_layer = heads;
  for (int32_t rule = 0; rule < rules; ++rule)
    choices.density.push_back(static_cast<double>(1 + random.below(100)) / 100);
  for (int32_t head = 0; head < layers * heads; ++head)
    for (int32_t rule = 0; rule < rules; ++rule)
      choices.cost.push_back(static_cast<double>(random.below(1000)) *
                             (1.01 - choices.density[static_cast<size_t>(rule)]));
  return choices;
}

// Every choice there is.
template <typename Visit>
void for_each_choice(const SpanChoices& choices, int32_t rules_per_layer, const Visit& visit) {
  const auto heads = static_cast<size_t>(choices.num_layers * choices.heads_per_layer);
  const auto num_rules = static_cast<int32_t>(choices.density.size());
  std::vector<int32_t> rules(heads, 0);
  for (;;) {
    bool allowed = true;
    double cost = 0, density = 0;
    for (size_t first = 0; first < heads; first += static_cast<size_t>(choices.heads_per_layer)) {
      std::set<int32_t> distinct;
      for (size_t i = first; i < first + static_cast<size_t>(choices.heads_per_layer); ++i) {
        distinct.insert(rules[i]);
        cost += choices.cost_of(static_cast<int64_t>(i), rules[i]);
        density += choices.density[static_cast<size_t>(rules[i])] / static_cast<double>(heads);
      }
      allowed = allowed &&
                (rules_per_layer == 0 || distinct.size() <= static_cast<size_t>(rules_per_layer));
    }
    if (allowed) visit(cost, density);
    size_t head = 0;
    while (head < heads && ++rules[head] == num_rules) rules[head++] = 0;
    if (head == heads) return;
  }
}

void check_limit(const SpanChoices& choices, const SpanSelection& selection, int32_t limit) {
  for (int32_t layer = 0; layer < choices.num_layers; ++layer) {
    std::set<int32_t> distinct;
    for (int32_t i = 0; i < choices.heads_per_layer; ++i)
      distinct.insert(selection.rules.at(static_cast<size_t>(layer * choices.heads_per_layer + i)));
    if (limit > 0) CHECK(distinct.size() <= static_cast<size_t>(limit));
  }
}

}  // namespace

TEST_CASE("Spans: the choice at a price is the best there is", "[calibrate][unit]") {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const SpanChoices choices = random_choices(seed, 2, 3, 4);
    for (const int32_t limit : {0, 1, 2})
      for (const double price : {0.0, 50.0, 1000.0, 1e6}) {
        const SpanSelection got = select_at_price(choices, price, limit);
        check_limit(choices, got, limit);
        double best = 1e300;
        for_each_choice(choices, limit, [&](double cost, double density) {
          best = std::min(best, cost + price * density);
        });
        CHECK(got.cost + price * got.density == Approx(best).epsilon(1e-9));
      }
  }
}

TEST_CASE("Spans: under a bound, near the best there is and never over it", "[calibrate][unit]") {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const SpanChoices choices = random_choices(seed, 2, 3, 4);
    for (const int32_t limit : {0, 2})
      for (const double bound : {0.3, 0.5, 0.7}) {
        INFO("seed " << seed << " bound " << bound << " limit " << limit);
        const SpanSelection got = select_spans(choices, bound, limit);
        check_limit(choices, got, limit);
        double best = 1e300, sparsest = 1, next_sparser = 1e300;
        for_each_choice(choices, limit, [&](double cost, double density) {
          sparsest = std::min(sparsest, density);
          if (density <= bound + 1e-12) best = std::min(best, cost);
          if (density <= bound - 0.2) next_sparser = std::min(next_sparser, cost);
        });
        if (sparsest > bound) {
          CHECK(got.density == Approx(sparsest));
          continue;
        }
        CHECK(got.density <= bound + 1e-12);
        CHECK(got.cost >= best - 1e-9);
        // Filling up after the price costs little: no choice of a clearly sparser kind beats it.
        CHECK(got.cost <= next_sparser + 1e-9);
      }
  }
}

TEST_CASE("MoA: rules hide nothing if dense, and the far past if not", "[calibrate][unit]") {
  const SpanRule rules[] = {kDense, {128, 0}, {0, 0.5}, {256, 0}};
  const int32_t lengths[] = {512};
  const EffectProfile profiles[] = {even_profile(8, 2, 3.0, 1.0)};
  const SpanChoices choices = span_choices(profiles, rules, lengths, 1);
  CHECK(choices.heads_per_layer == 2);
  CHECK(choices.cost_of(0, 0) == 0);
  CHECK(choices.density[0] == 1.0);
  CHECK(choices.density[1] == Approx((64 + 64 + 64) / 512.0).margin(64 / 512.0));
  CHECK(choices.cost_of(0, 1) > choices.cost_of(0, 3));
  CHECK(choices.cost_of(0, 3) > 0);
  CHECK(choices.cost_of(0, 2) > 0);
  CHECK(choices.cost_of(0, 1) == choices.cost_of(1, 1));
  // By hand for {128, 0}, 64 of them sinks: a row of block b sees from block b - 1 on, its last row
  // block b alone; block 0 always.
  double hidden = 0;
  for (int32_t b = 1; b < 8; ++b) hidden += std::max(0, b - 2) + (b >= 2 ? 1.0 / 64 : 0);
  CHECK(choices.cost_of(0, 1) == Approx(hidden / (2 * (8 * 3.0 + 28 * 1.0))).epsilon(1e-9));
}

TEST_CASE("MoA: candidates and the tokens that they hold", "[calibrate][unit]") {
  const auto rules = span_candidates(1024, 4096, 512);
  CHECK(std::count(rules.begin(), rules.end(), kDense) == 1);
  for (const SpanRule& rule : rules) {
    CHECK(rule.alpha + rule.beta * 1024 > 0);
    CHECK(rule.alpha + rule.beta * 4096 <= 4096);
  }
  CHECK(std::count(rules.begin(), rules.end(), SpanRule{-512, 1.0}) == 1);
  CHECK(std::count(rules.begin(), rules.end(), SpanRule{512, 1.0}) == 0);
  CHECK(std::count(rules.begin(), rules.end(), SpanRule{0, 0.0}) == 0);
  CHECK(span_tokens(kDense, 4096) == 4096);
  CHECK(span_tokens({-512, 1.0}, 4096) == 4096 - 512);
  CHECK(span_tokens({1024, 0}, 4096) == 1024);
  CHECK(span_tokens({1024, 0}, 512) == 512);
  CHECK(span_tokens({-4000, 1.0}, 4096) == 128);  // the least
}

TEST_CASE("MoA: effects of a model lie where its heads look", "[calibrate][unit][device]") {
  testing::TinyModelOptions options;
  options.hidden_dim = 32;
  options.head_dim = 16;
  options.ffn_dim = 32;
  const auto files = testing::make_tiny_model(options);
  Random random(5);
  std::vector<CalibrationSample> samples(2);
  for (CalibrationSample& sample : samples) {
    for (int i = 0; i < 190; ++i) sample.tokens.push_back(static_cast<int32_t>(random.below(256)));
    sample.rows = {150, 160, 161};
  }
  ThreadPool pool(2);
  const auto ops = testing::gradient_ops(pool);
  if (!ops) return;
  GradientModel model(*files, *ops);
  const auto sum = [](const EffectProfile& profile, int32_t first_block, int32_t end_block) {
    double total = 0;
    for (int32_t head = 0; head < profile.num_heads; ++head)
      for (int32_t row = first_block; row < end_block; ++row)
        for (int32_t column = 0; column < profile.num_blocks; ++column)
          total += profile.effects[static_cast<size_t>(
              (head * profile.num_blocks + row) * profile.num_blocks + column)];
    return total;
  };
  const auto all = profile_effects(model, samples, GroupImportance::kSum, false);
  CHECK(all.length == 190);
  CHECK(all.num_blocks == 3);
  CHECK(all.num_heads == 4);
  CHECK(sum(all, 0, 2) > 0);
  CHECK(sum(all, 2, 3) > 0);
  const auto largest = profile_effects(model, samples, GroupImportance::kMax, false);
  CHECK(sum(largest, 0, 3) < sum(all, 0, 3));
  CHECK(2 * sum(largest, 0, 3) > sum(all, 0, 3));  // two query heads to a KV head
  const auto answers = profile_effects(model, samples, GroupImportance::kSum, true);
  CHECK(sum(answers, 0, 2) == 0);
  CHECK(sum(answers, 2, 3) > 0);
  CHECK(sum(answers, 2, 3) < sum(all, 2, 3));
}

TEST_CASE("MoA: a table of the chosen spans, and what it is read back as", "[calibrate][unit]") {
  const auto files = testing::make_tiny_model();
  const SpanRule rules[] = {{-1024, 1.0}, {1024, 0}, {0, 1}, {1024, 0}};
  const HeadTable table = moa_table(rules, head_table_model(*files));
  CHECK(table.heads == std::vector<int32_t>{2, 3, HeadTable::kFull, 3});
  const HeadTable read = parse_head_table(write_head_table(table), "written", table.model);
  const auto kept = retention_rules(read, {});
  CHECK(kept.at(0).window_start(8191) == 1088);  // 64 sinks, and 7,104 of 8,192 by blocks of 64
  CHECK(kept.at(1).window_start(8191) == 8192 - (1024 - 64));
  CHECK(kept.at(2).keeps_all());
}

TEST_CASE("MoA: the published form has a column per query head", "[calibrate][unit]") {
  const SpanRule rules[] = {{-1024, 1.0}, {1024, 0}, {0, 0.125}, {0, 1}};
  CHECK(moa_json(rules, 2, 4) ==
        "{\"alphas\":\n[[-1024, -1024, 1024, 1024],\n [0, 0, 0, 0]],\n"
        "\"betas\":\n[[1, 1, 0, 0],\n [0.125, 0.125, 1, 1]]}\n");
}
