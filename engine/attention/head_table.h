// HeadTable: per KV head a retention class, as data. Read from JSON, checked against the model,
// never edited at run time.
//
//   {"format": "headwater.head_table/1", "method": "window",
//    "model": {"num_layers": 8, "num_kv_heads": 4, "head_dim": 64},
//    "classes": {"full": {}, "window": {"sinks": 4, "recent": 1024}},
//    "heads": [["full", "window", "window", "full"], ...]}      one row per layer, KV heads
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/model/model_spec.h"
#include "kvcache/kv_geometry.h"

namespace headwater {

struct HeadTable {
  std::string method;
  std::vector<kv::RetentionRule> rules;  // [num_layers, num_kv_heads]
};

// Throws ConfigError: what is wrong, where, what was expected.
HeadTable parse_head_table(std::string_view json, const std::string& name, const ModelSpec& model);
HeadTable load_head_table(const std::string& path, const ModelSpec& model);

}  // namespace headwater
