#include "tests/quality/head_variants.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>

namespace headwater::quality {
namespace {

constexpr const char* kKindNames[] = {"dense", "table", "random", "all-but"};

kv::RetentionRule compressed_rule(const std::vector<kv::RetentionRule>& rules) {
  kv::RetentionRule most;
  int64_t most_heads = 0;
  for (const kv::RetentionRule& rule : rules) {
    const int64_t heads = std::count(rules.begin(), rules.end(), rule);
    if (rule.keeps_all() || heads <= most_heads) continue;
    most = rule;
    most_heads = heads;
  }
  return most;
}

HeadVariant with_full_heads(const std::vector<bool>& full,
                            const std::vector<kv::RetentionRule>& table_rules) {
  HeadVariant variant;
  variant.rules.assign(full.size(), compressed_rule(table_rules));
  for (size_t head = 0; head < full.size(); ++head) {
    if (!full[head]) continue;
    variant.rules[head] = {};
    ++variant.num_full;
    variant.num_held += table_rules[head].keeps_all() ? 1 : 0;
  }
  return variant;
}

}  // namespace

HeadVariant dense_variant(size_t num_heads) {
  HeadVariant dense;
  dense.name = "dense";
  dense.rules.resize(num_heads);
  dense.num_full = static_cast<int32_t>(num_heads);
  return dense;
}

std::vector<HeadVariant> table_variants(const std::string& name,
                                        const std::vector<kv::RetentionRule>& rules,
                                        int32_t num_random,
                                        uint64_t seed) {
  std::vector<bool> full;
  for (const kv::RetentionRule& rule : rules) full.push_back(rule.keeps_all());
  HeadVariant table = with_full_heads(full, rules);
  table.rules = rules;
  table.name = name;
  table.kind = VariantKind::kTable;
  std::vector<HeadVariant> variants = {table};

  std::mt19937_64 random(seed);
  for (int32_t draw = 0; draw < num_random; ++draw) {
    std::vector<bool> drawn(rules.size());
    for (int32_t left = table.num_full; left > 0;) {
      const size_t head = random() % rules.size();
      left -= drawn[head] ? 0 : 1;
      drawn[head] = true;
    }
    variants.push_back(with_full_heads(drawn, rules));
    char number[16];
    std::snprintf(number, sizeof number, "%02d", draw);
    variants.back().name = name + ":random-" + number;
    variants.back().kind = VariantKind::kRandom;
  }
  full.flip();
  variants.push_back(with_full_heads(full, rules));
  variants.back().name = name + ":all-but";
  variants.back().kind = VariantKind::kAllBut;
  for (HeadVariant& variant : variants) variant.table = name;
  return variants;
}

nlohmann::ordered_json variant_json(const HeadVariant& variant,
                                    int32_t num_layers,
                                    const PageShape& page,
                                    const std::vector<int64_t>& lengths) {
  const auto num_heads = static_cast<int32_t>(variant.rules.size());
  const kv::KvGeometry geometry(num_layers, num_heads / num_layers, variant.rules, page);
  nlohmann::ordered_json json = {{"name", variant.name},
                                 {"kind", kKindNames[static_cast<size_t>(variant.kind)]},
                                 {"table", variant.table},
                                 {"heads", num_heads},
                                 {"full", variant.num_full},
                                 {"held", variant.num_held}};
  json["kv_share"] = nlohmann::ordered_json::object();
  for (const int64_t length : lengths)
    json["kv_share"][std::to_string(length)] =
        static_cast<double>(geometry.bytes_for(length, false)) /
        static_cast<double>(geometry.bytes_for(length, true));
  return json;
}

}  // namespace headwater::quality
