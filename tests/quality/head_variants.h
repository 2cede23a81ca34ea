// head_variants: which sets of heads an evaluation compares: a head table's, random ones of the
// same size, and all but the table's. Data only.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "kvcache/kv_geometry.h"

namespace headwater::quality {

enum class VariantKind : uint8_t { kDense, kTable, kRandom, kAllBut };

struct HeadVariant {
  std::string name;   // "razor", "razor:random-07", "razor:all-but"
  std::string table;  // whose heads these are or replace; "" = dense
  VariantKind kind = VariantKind::kDense;
  std::vector<kv::RetentionRule> rules;  // [num_layers, num_kv_heads]
  int32_t num_full = 0;                  // heads that keep everything
  int32_t num_held = 0;                  // of those that the table names
};

// Every head keeps everything.
HeadVariant dense_variant(size_t num_heads);

// The table itself, num_random draws of as many heads, and all but the table's. In the last two a
// head that does not keep everything follows the rule that most of the table's such heads follow.
// The draws depend on seed alone.
std::vector<HeadVariant> table_variants(const std::string& name,
                                        const std::vector<kv::RetentionRule>& rules,
                                        int32_t num_random,
                                        uint64_t seed);

// name, kind, table, heads and the bytes held of prompts of these lengths, as shares of dense.
nlohmann::ordered_json variant_json(const HeadVariant& variant,
                                    int32_t num_layers,
                                    const PageShape& page,
                                    const std::vector<int64_t>& lengths);

}  // namespace headwater::quality
