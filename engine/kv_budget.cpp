#include "engine/kv_budget.h"

#include <algorithm>
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

}  // namespace

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
                        int64_t memory_bytes) {
  if (config.max_model_len > model.max_positions)
    throw ConfigError("max-model-len is " + std::to_string(config.max_model_len) +
                      ", but the model was trained for " + std::to_string(model.max_positions) +
                      " positions");
  const int64_t row_bytes = geometry.bytes_for(1, true);  // one page of every head
  const int32_t wanted_len = config.max_model_len > 0 ? config.max_model_len : model.max_positions;
  const int64_t sequence_bytes = geometry.bytes_for(wanted_len, true);

  KvBudget budget;
  const int64_t wanted = config.kv_cache_bytes > 0
                             ? config.kv_cache_bytes
                             : std::min(sequence_bytes * config.max_num_seqs, memory_bytes / 4);
  int64_t largest_page = 0;
  for (const kv::KvGroup& group : geometry.groups())
    largest_page = std::max(largest_page, group.page.page_bytes());
  // A whole number of pages, and enough superblocks that every page size finds some.
  const int64_t target =
      std::clamp(wanted / 64, largest_page, std::max(kSuperblockBytes, largest_page));
  budget.superblock_bytes = target / largest_page * largest_page;
  budget.arena_bytes = wanted / budget.superblock_bytes * budget.superblock_bytes;

  const int64_t held_pages = budget.arena_bytes / row_bytes;
  const int64_t held_tokens = held_pages * geometry.page_tokens();
  if (config.max_model_len > held_tokens || held_pages == 0)
    throw ConfigError("kv-cache-bytes " + std::to_string(wanted) + " holds " +
                      std::to_string(held_tokens) + " tokens, max-model-len asks for " +
                      std::to_string(wanted_len) + ", which need " +
                      std::to_string(sequence_bytes) + " bytes: raise the one or lower the other");
  budget.max_model_len = static_cast<int32_t>(std::min<int64_t>(wanted_len, held_tokens));
  // PageIds count granules in 31 bits.
  const int64_t reach = int64_t{std::numeric_limits<PageId>::max()} * kPageGranuleBytes;
  if (budget.arena_bytes > reach)
    throw ConfigError("kv-cache-bytes must be at most " + std::to_string(reach));
  return budget;
}

}  // namespace headwater
