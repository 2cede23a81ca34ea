// How large the KV pool is and how long a sequence may get. Pure functions, for start-up.
#pragma once

#include <cstdint>

#include "engine/config/engine_config.h"
#include "engine/model/model_spec.h"
#include "kernels/ops.h"
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

// How a GPU's memory is divided.
struct DeviceBudget {
  int64_t share_bytes = 0;    // ours, by gpu-memory-utilization
  int64_t loaded_bytes = 0;   // of it: weights and the model's activations
  int64_t scratch_bytes = 0;  // of it: page tables, scratch, graphs
  int64_t pool_bytes = 0;     // of it: what is left for the KV pool
};

// at_start: before the weights were loaded; what others hold then is not counted against our share,
// which must be free. free_bytes: after. Throws ConfigError that names gpu-memory-utilization if
// the share is not free or leaves nothing.
DeviceBudget plan_device_budget(double gpu_memory_utilization,
                                const DeviceBytes& at_start,
                                int64_t free_bytes,
                                int64_t scratch_bytes);

// What else than the pool is allocated after the weights: the page tables of max_num_seqs sequences
// of the longest length, and what steps work in.
int64_t step_scratch_bytes(const EngineConfig& config,
                           const ModelSpec& model,
                           const kv::KvGeometry& geometry);

// Memory that could be taken now: the lesser of the system's and the control group's.
int64_t available_memory_bytes();

}  // namespace headwater
