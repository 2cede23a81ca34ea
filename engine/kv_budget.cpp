#include "engine/kv_budget.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>

#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr int64_t kSuperblockBytes = int64_t{2} << 20;

int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : std::numeric_limits<int64_t>::max();
}

int32_t wanted_model_len(const EngineConfig& config, const ModelSpec& model) {
  return config.max_model_len > 0 ? config.max_model_len : model.max_positions;
}

std::string decimal(double value, int precision) {
  char text[32];
  (void)std::snprintf(text, sizeof text, "%.*g", precision, value);
  return text;
}

std::string gigabytes(int64_t bytes) {
  return decimal(static_cast<double>(bytes) / 1e9, 3) + " GB";
}

bool compensates(const kv::KvGeometry& geometry) {
  return std::ranges::any_of(geometry.groups(),
                             [](const kv::KvGroup& group) { return group.rule.compensate; });
}

// Of the heads that drop tokens, one block each.
int64_t largest_block_bytes(const kv::KvGeometry& geometry) {
  int64_t bytes = 0;
  for (const kv::KvGroup& group : geometry.groups())
    if (!group.rule.keeps_all())
      bytes += geometry.pages_for(group.rule.block_tokens) * group.row_bytes(0);
  return bytes;
}

// The largest number up to most that fits; whatever is below one that fits does too.
template <typename Fits>
int32_t longest_sequence(int32_t most, Fits&& fits) {
  int32_t low = 0;
  for (int32_t high = most; low < high;) {
    const int32_t middle = low + (high - low + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace

DeviceBudget plan_device_budget(double gpu_memory_utilization,
                                const DeviceBytes& at_start,
                                int64_t free_bytes,
                                int64_t scratch_bytes) {
  DeviceBudget budget;
  budget.share_bytes =
      static_cast<int64_t>(gpu_memory_utilization * static_cast<double>(at_start.total_bytes));
  budget.loaded_bytes = at_start.free_bytes - free_bytes;
  budget.scratch_bytes = scratch_bytes;
  budget.pool_bytes = budget.share_bytes - budget.loaded_bytes - scratch_bytes;
  const std::string share = "gpu-memory-utilization " + decimal(gpu_memory_utilization, 3) +
                            " is " + gigabytes(budget.share_bytes) + " of the GPU's " +
                            gigabytes(at_start.total_bytes);
  if (budget.share_bytes > at_start.free_bytes)
    throw ConfigError(share + ", but only " + gigabytes(at_start.free_bytes) +
                      " were free at start: lower it, or end what else uses the GPU");
  if (budget.pool_bytes <= 0)
    throw ConfigError(share + ", and weights take " + gigabytes(budget.loaded_bytes) +
                      ", page tables and scratch " + gigabytes(scratch_bytes) +
                      ": nothing is left for the KV pool; raise it, lower max-model-len or "
                      "max-num-seqs, or take a smaller model");
  return budget;
}

int64_t step_scratch_bytes(const EngineConfig& config,
                           const ModelSpec& model,
                           const kv::KvGeometry& geometry) {
  // Attention's partial results, cuBLAS' workspace, graphs, what draws read.
  constexpr int64_t kStepBytes = int64_t{256} << 20;
  const int32_t max_tokens = wanted_model_len(config, model);
  int64_t entries = 0;  // of one sequence
  for (const kv::KvGroup& group : geometry.groups()) {
    const int64_t records = group.rule.compensate ? max_tokens / group.rule.block_tokens + 1 : 0;
    entries += group.num_heads * (geometry.pages_for(max_tokens) + records);
  }
  return kStepBytes + config.max_num_seqs * entries * int64_t{sizeof(PageId)};
}

int64_t available_memory_bytes() {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key, unit; meminfo >> key;) {
    int64_t kib = 0;
    meminfo >> kib;
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max");
  if (limit != std::numeric_limits<int64_t>::max())
    available = std::min(available, limit - read_number("/sys/fs/cgroup/memory.current"));
  return available;
}

KvBudget plan_kv_budget(const EngineConfig& config,
                        const ModelSpec& model,
                        const kv::KvGeometry& geometry,
                        bool faithful,
                        int64_t most_bytes) {
  if (config.max_model_len > model.max_positions)
    throw ConfigError("max-model-len is " + std::to_string(config.max_model_len) +
                      ", but the model was trained for " + std::to_string(model.max_positions) +
                      " positions");
  const int32_t wanted_len = wanted_model_len(config, model);
  const int32_t max_rows = std::max(config.max_num_batched_tokens, config.max_num_seqs);
  int64_t sequence_bytes = geometry.peak_bytes(wanted_len, {.dense = true}, max_rows);
  if (compensates(geometry)) sequence_bytes += sequence_bytes / 16;  // superblocks half used, below

  KvBudget budget;
  const int64_t wanted = config.kv_cache_bytes > 0
                             ? config.kv_cache_bytes
                             : std::min(sequence_bytes * config.max_num_seqs, most_bytes);
  int64_t largest_page = 0;
  for (const kv::KvGroup& group : geometry.groups())
    largest_page = std::max(largest_page, group.page.page_bytes());
  // A whole number of pages, and enough superblocks that every page size finds some.
  const int64_t target =
      std::clamp(wanted / 64, largest_page, std::max(kSuperblockBytes, largest_page));
  budget.superblock_bytes = target / largest_page * largest_page;
  budget.arena_bytes = wanted / budget.superblock_bytes * budget.superblock_bytes;

  // Pages and records never share a superblock: each kind leaves one half used at worst.
  const int64_t usable =
      budget.arena_bytes - (compensates(geometry) ? 2 : 0) * budget.superblock_bytes;
  const auto longest = [&](bool dense) {
    return longest_sequence(wanted_len, [&](int32_t tokens) {
      const kv::SequenceRules rules{.dense = dense,
                                    .faithful_tokens = faithful && !dense ? tokens : 0};
      // What is kept falls back by a block now and then: no shorter sequence may need more.
      const int64_t block = dense || faithful ? 0 : largest_block_bytes(geometry);
      return std::min(geometry.peak_bytes(tokens, rules, max_rows) + block,
                      geometry.most_bytes(tokens)) <= usable;
    });
  };
  budget.max_model_len = longest(false);
  budget.max_dense_len = longest(true);
  if (config.max_model_len > budget.max_model_len || budget.max_model_len == 0)
    throw ConfigError("kv-cache-bytes " + std::to_string(wanted) + " holds " +
                      std::to_string(budget.max_model_len) + " tokens, max-model-len asks for " +
                      std::to_string(wanted_len) + ": raise the one or lower the other" +
                      (faithful ? ", or set prefill-mode streaming" : ""));
  // PageIds count granules in 31 bits.
  const int64_t reach = int64_t{std::numeric_limits<PageId>::max()} * kPageGranuleBytes;
  if (budget.arena_bytes > reach)
    throw ConfigError("kv-cache-bytes must be at most " + std::to_string(reach));
  return budget;
}

}  // namespace headwater
