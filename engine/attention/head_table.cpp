#include "engine/attention/head_table.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "engine/attention/head_table_published.h"
#include "engine/model/fingerprint.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

int64_t kept_tokens(const kv::RetentionRule& rule, int32_t position) {
  const int64_t start = rule.window_start(position);
  int64_t kept = position + 1 - start + std::min<int64_t>(start, rule.sink_tokens);
  if (rule.shard_stride > 0) kept += start / rule.shard_stride;
  return kept;
}

// The rule that keeps more at max_positions; where both have plain windows, at least what either
// keeps of sinks and latest tokens.
kv::RetentionRule wider(const kv::RetentionRule& a,
                        const kv::RetentionRule& b,
                        int32_t max_positions) {
  if (a.keeps_all() || b.keeps_all()) return {};
  kv::RetentionRule rule =
      kept_tokens(b, max_positions - 1) > kept_tokens(a, max_positions - 1) ? b : a;
  rule.sink_tokens = std::max(a.sink_tokens, b.sink_tokens);
  rule.recent_tokens = std::max(a.recent_tokens, b.recent_tokens);
  return rule;
}

}  // namespace

std::string read_table_file(const std::string& path) {
  std::error_code error;
  const bool is_file = std::filesystem::is_regular_file(path, error);
  std::ifstream file(path, std::ios::binary);
  if (!is_file || !file) throw ConfigError("head table " + path + ": cannot be read (head-table)");
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error || size > uintmax_t{kMaxHeadTableBytes})
    throw ConfigError("head table " + path + ": must be at most 64 MiB");
  return {std::istreambuf_iterator<char>(file), {}};
}

HeadTableModel head_table_model(const LoadedModel& model) {
  const HeadShape& heads = model.spec.layers.at(0).heads;
  bool alike = true;  // in query heads: if not, no table by query heads fits
  for (const LayerSpec& layer : model.spec.layers) {
    if (layer.heads.num_kv_heads != heads.num_kv_heads || layer.heads.head_dim != heads.head_dim)
      throw LoadError(model.path + ": layers differ in KV heads or head size");
    alike = alike && layer.heads.num_heads == heads.num_heads;
  }
  return {model.name,
          static_cast<int32_t>(model.spec.layers.size()),
          alike ? heads.num_heads : 0,
          heads.num_kv_heads,
          heads.head_dim,
          model.spec.max_positions,
          model_fingerprint(model)};
}

HeadTable load_head_table(const std::string& path,
                          const HeadTableModel& model,
                          double duo_sparsity) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error) || path.ends_with(".tsv"))
    return load_duo_table(path, model, duo_sparsity);
  return parse_head_table(read_table_file(path), path, model);
}

std::vector<kv::RetentionRule> retention_rules(const HeadTable& table,
                                               const kv::RetentionRule& compressed,
                                               double ratio) {
  const HeadTableModel& model = table.model;
  const int32_t group = table.heads_per_layer() / model.num_kv_heads;  // 1, or the query heads
  const auto num_heads = static_cast<size_t>(model.num_layers * model.num_kv_heads);
  const auto rule_of = [&](int32_t id) {
    if (id == HeadTable::kFull) return kv::RetentionRule{};
    if (id == HeadTable::kCompressed) return compressed;
    return table.classes[static_cast<size_t>(id - HeadTable::kFirstNamed)].rule;
  };
  std::vector<kv::RetentionRule> rules(num_heads);
  for (size_t head = 0; head < num_heads; ++head) {
    const size_t first = head * static_cast<size_t>(group);
    rules[head] = rule_of(table.heads[first]);
    for (size_t i = 1; i < static_cast<size_t>(group); ++i)
      rules[head] = wider(rules[head], rule_of(table.heads[first + i]), model.max_positions);
  }
  if (ratio < 0) return rules;

  const auto wanted = static_cast<size_t>(std::ceil(ratio * static_cast<double>(num_heads) - 1e-6));
  std::set<size_t> full;
  for (const int32_t head : table.ranking) {
    if (full.size() >= wanted) break;
    full.insert(static_cast<size_t>(head / group));
  }
  if (full.size() < wanted)
    throw ConfigError("retrieval-ratio asks for " + std::to_string(wanted) +
                      " heads, the ranking of the head table names " + std::to_string(full.size()));
  for (size_t head = 0; head < num_heads; ++head) {
    if (full.contains(head)) {
      rules[head] = {};
    } else if (rules[head].keeps_all()) {
      rules[head] = compressed;
    }
  }
  return rules;
}

}  // namespace headwater
