// Head tables as the methods' authors publish them. All throw ConfigError.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "engine/attention/head_table.h"

namespace headwater {

// A regular file of at most kMaxHeadTableBytes.
std::string read_table_file(const std::string& path);

// DuoAttention (arXiv 2410.10819): one line per layer, one gate per KV head, separated by tabs. The
// heads whose gate is at or above the quantile `sparsity` keep everything; ties go to the earlier
// head, so that the number does not depend on chance.
HeadTable parse_duo_table(std::string_view tsv,
                          const std::string& name,
                          const HeadTableModel& model,
                          double sparsity);
// The published folder (full_attention_heads.tsv, config.json) or the TSV file. config.json states
// the windows of training, which are not the deployed ones: they are told, not taken.
HeadTable load_duo_table(const std::string& path, const HeadTableModel& model, double sparsity);

// MoA (arXiv 2406.14909): {"alphas": [[...]], "betas": [[...]]}, one row per layer, one column per
// KV head or per query head; a head's span over N tokens is alpha + beta * N, sinks included, at
// least 128, rounded up to blocks of 64.
HeadTable read_moa_table(const nlohmann::json& json,
                         const std::string& name,
                         const HeadTableModel& model);
// The rule of one span. beta: 0 to 1.
kv::RetentionRule moa_rule(int32_t alpha, double beta);

}  // namespace headwater
