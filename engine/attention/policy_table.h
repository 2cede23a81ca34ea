// Attention policies: what each KV head keeps. A policy is a row of the table: data in, one
// retention rule per head out. Selection and formats join as further columns; there is one
// attention op and one cache for all of them.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/config/engine_config.h"
#include "engine/model/model_spec.h"
#include "kvcache/kv_geometry.h"

namespace headwater {

struct AttentionPolicy {
  std::string_view name;
  std::string_view help;
  // One rule per [layer, kv head]. Throws ConfigError.
  std::vector<kv::RetentionRule> (*rules)(const EngineConfig& config, const ModelSpec& model);
};

std::span<const AttentionPolicy> attention_policies();
// nullptr: no such policy.
const AttentionPolicy* find_policy(std::string_view name);
// "dense, window": for messages.
std::string policy_names();

}  // namespace headwater
