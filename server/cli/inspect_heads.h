// What a head table does to a model's KV cache, for `headwater inspect --head-table`.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <ostream>

#include "engine/attention/policy_table.h"

namespace headwater::cli {

// Policy, table, a letter per head, and bytes per token and per sequence from 2K to 128K.
nlohmann::ordered_json describe_heads(const AttentionPlan& plan, const LoadedModel& model);
void print_heads(const nlohmann::ordered_json& report, std::ostream& out);

}  // namespace headwater::cli
