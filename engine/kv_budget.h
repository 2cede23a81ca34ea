// How large the KV pool is and how long a sequence may get. Pure functions, for start-up.
#pragma once

#include <cstdint>

#include "engine/config/engine_config.h"
#include "engine/model/model_spec.h"
#include "kvcache/kv_geometry.h"

namespace headwater {

struct KvBudget {
  int64_t arena_bytes = 0;
  int64_t superblock_bytes = 0;
  int32_t max_model_len = 0;  // longest sequence that the pool holds, as the policy keeps it
  int32_t max_dense_len = 0;  // of a request that asks for dense attention
};

// faithful: prompts are held whole until they end. most_bytes: what the pool may take where
// kv-cache-bytes does not say. Throws ConfigError that names the option to change.
KvBudget plan_kv_budget(const EngineConfig& config,
                        const ModelSpec& model,
                        const kv::KvGeometry& geometry,
                        bool faithful,
                        int64_t most_bytes);

// Memory that could be taken now: the lesser of the system's and the control group's.
int64_t available_memory_bytes();

}  // namespace headwater
