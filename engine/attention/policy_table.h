// Attention policies: what each KV head keeps. A policy is a row of the table, numbers for its
// compressed heads; with a head table and the options it becomes one retention rule per head.
// Selection and formats join as further columns; there is one attention op and one cache for all.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/attention/head_table.h"
#include "engine/attention/shipped_tables.h"
#include "engine/config/engine_config.h"
#include "kvcache/kv_geometry.h"

namespace headwater {

enum class TableUse : uint8_t { kRefused, kOptional, kRequired };

struct AttentionPolicy {
  std::string_view name;
  std::string_view help;
  TableUse table = TableUse::kRefused;
  std::string_view methods[2] = {};  // of the shipped tables it runs, the first found is taken
  bool faithful = false;             // prefill-mode auto
  kv::RetentionRule compressed;  // of heads that do not keep everything, unless options say else
  // Rules without a table, where they differ by head: [num_layers, num_kv_heads]. Null: all heads
  // are compressed.
  std::vector<kv::RetentionRule> (*by_head)(const EngineConfig& config,
                                            const HeadTableModel& model,
                                            const kv::RetentionRule& compressed) = nullptr;
};

std::span<const AttentionPolicy> attention_policies();
// nullptr: no such policy.
const AttentionPolicy* find_policy(std::string_view name);
// "dense, window, ...": for messages.
std::string policy_names();

// The policy that runs tables of a method (HeadTable::method).
const AttentionPolicy& policy_of_method(std::string_view method);

// What the engine runs.
struct AttentionPlan {
  std::string policy;
  std::vector<kv::RetentionRule> rules;  // [num_layers, num_kv_heads]
  bool faithful = false;                 // prompts see and hold everything until they end
  std::string table;                     // where the head table came from; "" = none
  std::string method;                    // how it was made
  std::vector<std::string> remarks;      // for the operator, at start-up

  int32_t num_full() const;  // heads that keep everything their layer sees
};

// rules: [num_layers, num_kv_heads]. In a layer that sees a window, a head keeps that window, or
// its rule's where that is a shorter one of the latest tokens; sinks, shards and compensation are
// for what a layer would see.
void fit_to_layers(const ModelSpec& model, std::vector<kv::RetentionRule>& rules);

// Reads the head table: a file, or one of shipped by the model's fingerprint and the method
// ("auto", and none given where the policy needs one). Attention "auto" is the policy of the table
// given, of the best shipped one, or else dense. Throws ConfigError that names the option to
// change.
AttentionPlan plan_attention(const EngineConfig& config,
                             const LoadedModel& model,
                             std::span<const ShippedTable> shipped = shipped_head_tables());

}  // namespace headwater
