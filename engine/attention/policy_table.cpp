#include "engine/attention/policy_table.h"

#include "engine/attention/head_table.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

size_t num_heads(const ModelSpec& model) {
  return model.layers.size() * static_cast<size_t>(model.layers[0].heads.num_kv_heads);
}

std::vector<kv::RetentionRule> dense_rules(const EngineConfig& config, const ModelSpec& model) {
  if (!config.head_table.empty())
    throw ConfigError("head-table is given, but attention is dense: use --attention window");
  return std::vector<kv::RetentionRule>(num_heads(model));
}

std::vector<kv::RetentionRule> window_rules(const EngineConfig& config, const ModelSpec& model) {
  if (!config.head_table.empty()) return load_head_table(config.head_table, model).rules;
  return std::vector<kv::RetentionRule>(num_heads(model),
                                        {config.window_sinks, config.window_recent});
}

constexpr AttentionPolicy kPolicies[] = {
    {"dense", "every head keeps every token", dense_rules},
    {"window",
     "heads keep the first and the latest tokens: all of them, or those a head table names",
     window_rules},
};

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

}  // namespace headwater
