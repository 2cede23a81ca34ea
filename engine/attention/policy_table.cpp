#include "engine/attention/policy_table.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr int32_t kS2Block = 64;
constexpr int32_t kS2LocalBlocks = 16;

// S2-Attention (arXiv 2407.17678): block b of KV head h stays if (b + phase) % stride == 0. The
// published phase is h * max(1, stride / query heads), whose shards leave gaps where a layer has
// fewer KV heads than the stride; there the heads of the next layer go on where these end, so that
// stride / KV heads layers cover every block. The last heads of each layer may be dense.
std::vector<kv::RetentionRule> s2_rules(const EngineConfig& config,
                                        const HeadTableModel& model,
                                        const kv::RetentionRule& compressed) {
  std::vector<kv::RetentionRule> rules;
  for (int32_t layer = 0; layer < model.num_layers; ++layer) {
    for (int32_t head = 0; head < model.num_kv_heads; ++head) {
      kv::RetentionRule rule = compressed;
      rule.shard_stride = config.s2_stride;
      rule.shard_phase = (layer * model.num_kv_heads + head) % config.s2_stride;
      if (model.num_kv_heads >= config.s2_stride) rule.shard_phase = head % config.s2_stride;
      rules.push_back(head < model.num_kv_heads - config.s2_dense_heads ? rule
                                                                        : kv::RetentionRule{});
    }
  }
  return rules;
}

constexpr AttentionPolicy kPolicies[] = {
    {"dense", "every head keeps every token", TableUse::kRefused, {}, false, {}},
    {"window",
     "StreamingLLM: the first and the latest tokens",
     TableUse::kOptional,
     {"window"},
     false,
     {.sink_tokens = 4, .recent_tokens = 1024}},
    {"razor",
     "RazorAttention: retrieval heads keep all, the rest a window and one token for what is "
     "dropped",
     TableUse::kRequired,
     {"razor", "measured"},
     true,
     {.sink_tokens = 4,
      .recent_tokens = 4000,
      .growth_ppm = 200'000,
      .block_tokens = 384,
      .compensate = true}},
    {"duo",
     "DuoAttention: retrieval heads keep all, the rest sinks and a window",
     TableUse::kRequired,
     {"duo", "measured"},
     false,
     {.sink_tokens = 64, .recent_tokens = 256}},
    {"moa",
     "MoA: a span per head that grows with the context",
     TableUse::kRequired,
     {"moa"},
     false,
     {.sink_tokens = 64, .recent_tokens = 64, .block_tokens = 64}},
    {"s2",
     "S2-Attention: local blocks and a shard per head, for models trained so",
     TableUse::kOptional,
     {"s2"},
     false,
     // The block of the row itself and the ones before it, whole.
     {.recent_tokens = (kS2LocalBlocks - 1) * kS2Block + 1, .block_tokens = kS2Block},
     s2_rules},
};

kv::RetentionRule compressed_rule(const AttentionPolicy& policy, const EngineConfig& config) {
  kv::RetentionRule rule = policy.compressed;
  if (config.window_sinks >= 0) rule.sink_tokens = config.window_sinks;
  if (config.window_recent > 0) rule.recent_tokens = config.window_recent;
  if (config.window_growth >= 0)
    rule.growth_ppm = static_cast<int32_t>(std::lround(config.window_growth * rule.kPpm));
  if (config.window_block > 0) rule.block_tokens = config.window_block;
  if (rule.compensate && rule.recent_tokens < 2)
    throw ConfigError("window-recent must be at least 2 with attention " +
                      std::string(policy.name));
  return rule;
}

// nullptr: none is shipped.
const ShippedTable* find_shipped(std::span<const ShippedTable> shipped,
                                 const std::string& fingerprint,
                                 std::span<const std::string_view> methods) {
  for (const std::string_view method : methods) {
    for (const ShippedTable& table : shipped) {
      const HeadTableLabel label = head_table_label(table.json, std::string(table.name));
      if (!method.empty() && label.method == method && label.fingerprint == fingerprint)
        return &table;
    }
  }
  return nullptr;
}

// The table that the plan follows, if any.
std::optional<HeadTable> choose_table(const EngineConfig& config,
                                      const HeadTableModel& model,
                                      std::span<const ShippedTable> shipped,
                                      std::span<const std::string_view> methods,
                                      std::string& source) {
  if (!config.head_table.empty() && config.head_table != "auto") {
    source = config.head_table;
    return load_head_table(config.head_table, model, config.duo_sparsity);
  }
  const ShippedTable* found = find_shipped(shipped, model.fingerprint, methods);
  if (found == nullptr) return std::nullopt;
  source = "shipped " + std::string(found->name);
  return parse_head_table(found->json, source, model);
}

}  // namespace

std::span<const AttentionPolicy> attention_policies() { return kPolicies; }

const AttentionPolicy* find_policy(std::string_view name) {
  for (const AttentionPolicy& policy : kPolicies)
    if (policy.name == name) return &policy;
  return nullptr;
}

std::string policy_names() {
  std::string names;
  for (const AttentionPolicy& policy : kPolicies)
    names += (names.empty() ? "" : ", ") + std::string(policy.name);
  return names;
}

int32_t AttentionPlan::num_full() const {
  return static_cast<int32_t>(std::ranges::count_if(rules, &kv::RetentionRule::keeps_all_seen));
}

void fit_to_layers(const ModelSpec& model, std::vector<kv::RetentionRule>& rules) {
  for (size_t i = 0; i < rules.size(); ++i) {
    const int32_t window = model.layers[i / (rules.size() / model.layers.size())].window;
    if (window == 0) continue;
    const kv::RetentionRule wanted = std::exchange(rules[i], {.layer_window = window});
    const bool grows = wanted.growth_ppm > 0 || wanted.shard_stride > 0;
    if (!wanted.keeps_all() && !grows && wanted.recent_tokens < window)
      rules[i].recent_tokens = wanted.recent_tokens;
  }
}

const AttentionPolicy& policy_of_method(std::string_view method) {
  // Heads found by measuring, or drawn for comparison, are kept as RazorAttention's are.
  const AttentionPolicy* policy = find_policy(method);
  return policy != nullptr ? *policy : *find_policy("razor");
}

AttentionPlan plan_attention(const EngineConfig& config,
                             const LoadedModel& model,
                             std::span<const ShippedTable> shipped) {
  const bool choose = config.attention == "auto";
  const AttentionPolicy* policy = find_policy(choose ? "dense" : config.attention);
  if (policy == nullptr)
    throw ConfigError("attention must be auto or one of " + policy_names() + ", got \"" +
                      config.attention + "\"");
  if (!choose && policy->table == TableUse::kRefused && !config.head_table.empty())
    throw ConfigError("head-table is given, but attention is " + config.attention +
                      ", which has no use for it");
  const HeadTableModel facts = head_table_model(model);
  AttentionPlan plan;
  std::optional<HeadTable> table;
  constexpr std::string_view kBestFirst[] = {"measured", "razor", "duo", "moa", "s2", "window"};
  if (choose) {
    table = choose_table(config, facts, shipped, kBestFirst, plan.table);
    if (table) policy = &policy_of_method(table->method);
  } else if (policy->table == TableUse::kRequired || !config.head_table.empty()) {
    table = choose_table(config, facts, shipped, policy->methods, plan.table);
    if (!table)
      throw ConfigError("attention " + config.attention +
                        " needs a head table and none is shipped for this model (fingerprint " +
                        facts.fingerprint +
                        "): make one with headwater calibrate and give it as head-table");
  }
  if (config.retrieval_ratio >= 0 && !table)
    throw ConfigError("retrieval-ratio needs a head table with a ranking: option head-table");

  plan.policy = policy->name;
  plan.faithful =
      config.prefill_mode == "auto" ? policy->faithful : config.prefill_mode == "faithful";
  const kv::RetentionRule compressed = compressed_rule(*policy, config);
  if (table) {
    plan.rules = retention_rules(*table, compressed, config.retrieval_ratio);
    plan.method = table->method;
    plan.remarks = table->remarks;
    if (table->granularity == Granularity::kQueryHead)
      plan.remarks.push_back("the table names " + std::to_string(facts.num_heads) +
                             " query heads per layer: each KV head keeps what the widest of its " +
                             std::to_string(facts.num_heads / facts.num_kv_heads) + " keeps");
  } else if (policy->by_head != nullptr) {
    plan.rules = policy->by_head(config, facts, compressed);
  } else {
    plan.rules.assign(static_cast<size_t>(facts.num_layers * facts.num_kv_heads), compressed);
  }
  fit_to_layers(model.spec, plan.rules);
  return plan;
}

}  // namespace headwater
