// bench_kv [layers kv_heads head_dim [pool_sequences [length]]]: what the KV cache holds under each
// retention rule, and how many sequences a pool takes. The real allocator, manager and scheduler
// without a model: no weight is read and no page is written. Default: the shape of Llama-3-8B, f16,
// a pool of 16 dense sequences of 32,768 tokens.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/schedule/scheduler.h"

namespace headwater {
namespace {

struct Shape {
  int32_t layers = 32, kv_heads = 8, head_dim = 128;
  int32_t heads() const { return layers * kv_heads; }
};

struct Policy {
  const char* name;
  double full_share;  // of the heads
  kv::RetentionRule rule;
  bool faithful;
};

constexpr kv::RetentionRule kRazor{.sink_tokens = 4,
                                   .recent_tokens = 4000,
                                   .growth_ppm = 200'000,
                                   .block_tokens = 384,
                                   .compensate = true};
constexpr kv::RetentionRule kRazorFixed{
    .sink_tokens = 4, .recent_tokens = 4096, .block_tokens = 384, .compensate = true};

// The published settings of each method (reference: README, "KV memory").
const Policy kPolicies[] = {
    {"dense", 1.0, {}, false},
    {"razor 15 %, max(4000, N/5), faithful", 0.15, kRazor, true},
    {"razor 15 %, max(4000, N/5), streaming", 0.15, kRazor, false},
    {"razor 15 %, window 4096, faithful", 0.15, kRazorFixed, true},
    {"razor 15 %, window 4096, streaming", 0.15, kRazorFixed, false},
    {"duo 50 %, 64 + 256", 0.5, {.sink_tokens = 64, .recent_tokens = 256}, true},
    {"window 4 + 1024 (StreamingLLM)", 0.0, {.sink_tokens = 4, .recent_tokens = 1024}, false},
};

kv::KvGeometry geometry(const Shape& shape, const Policy& policy) {
  const auto full = static_cast<size_t>(std::ceil(policy.full_share * shape.heads() - 1e-9));
  std::vector<kv::RetentionRule> rules(static_cast<size_t>(shape.heads()), policy.rule);
  std::fill_n(rules.begin(), full, kv::RetentionRule{});
  return kv::KvGeometry(
      shape.layers, shape.kv_heads, rules, PageShape{DType::kF16, shape.head_dim, 16, 0});
}

int64_t record_bytes_of(const kv::KvGeometry& geometry, int32_t num_tokens) {
  int64_t bytes = 0;
  const int32_t pages = geometry.pages_for(num_tokens);
  for (int32_t g = 0; g < geometry.num_groups(); ++g) {
    const kv::KvGroup& group = geometry.groups()[static_cast<size_t>(g)];
    const int32_t start = group.rule.window_start(num_tokens);
    for (int32_t page = 0; page < pages; ++page)
      if (group.has_record(page) && geometry.keeps_page(g, page, start))
        bytes += group.num_heads * record_bytes(group.page);
  }
  return bytes;
}

// Sequences of `length` tokens, the last kOutput of them output, arrive all at once: the most that
// decode together before anything is preempted, and what they hold then (at most kMaxSequences).
constexpr int32_t kOutput = 512;
constexpr int32_t kMaxSequences = 128;
struct Admitted {
  int32_t decoding = 0;
  int64_t held_bytes = 0, total_bytes = 0;
  double host_us = 0;  // of a step in which all of them decode
};
Admitted admit(const Shape& shape, const Policy& policy, int64_t pool_bytes, int32_t length) {
  const int32_t prompt = length - kOutput;
  kv::KvManager::Options options;
  options.superblock_bytes = int64_t{2} << 20;
  options.arena_bytes = pool_bytes / options.superblock_bytes * options.superblock_bytes;
  options.max_sequences = kMaxSequences;
  options.max_tokens = length + 8192;  // the first may outgrow it while the last prefill
  options.prefix_caching = false;
  kv::KvManager manager(geometry(shape, policy), options);
  manager.record_table_changes();
  Scheduler scheduler(manager, {kMaxSequences, 4096, kMaxSequences, 2.0});
  for (int32_t i = 0; i < kMaxSequences; ++i) {
    auto seq = std::make_unique<Sequence>();
    seq->request = std::make_shared<const Request>();
    seq->order = static_cast<uint64_t>(i);
    seq->tokens.assign(static_cast<size_t>(prompt), i);
    seq->num_prompt = prompt;
    seq->sampler = std::make_unique<Sampler>(
        seq->request->sampling, 1, std::span<const int32_t>(), 0, 0, seq->tokens);
    seq->rules.dense = policy.full_share == 1.0;
    seq->rules.faithful_tokens = policy.faithful ? prompt : 0;
    scheduler.add(std::move(seq));
  }
  Admitted most;
  StepPlan plan;
  // Prefill costs next to nothing beside a decode, so that it is not spread thin over the decodes.
  plan.num_decodes = plan.num_rows = 1;
  scheduler.observe(plan, 1.0);
  while (scheduler.num_preemptions() == 0) {
    scheduler.next_step(plan);
    (void)manager.take_table_changes();
    if (plan.empty()) break;
    scheduler.commit_rows(plan);
    scheduler.observe(plan, (plan.num_decodes > 0 ? 1.0 : 0.0) + 1e-6 * plan.num_rows);
    int32_t decoding = 0;
    for (const PlannedRows& rows : plan.sequences) {
      Sequence& seq = *rows.seq;
      if (rows.end() < seq.num_tokens()) continue;
      seq.tokens.push_back(0);
      ++decoding;
    }
    if (decoding > most.decoding) most = {decoding, manager.byte_counts().held};
    if (plan.num_decodes > 0 && plan.num_decodes == plan.num_rows) break;  // nobody else gets in
  }
  most.total_bytes = manager.byte_counts().total;
  constexpr int kSteps = 400;
  double seconds = 0;
  for (int i = 0; i < kSteps; ++i) {
    for (const PlannedRows& rows : plan.sequences)
      if (rows.end() == rows.seq->num_tokens()) rows.seq->tokens.push_back(0);
    const auto begin = std::chrono::steady_clock::now();
    scheduler.next_step(plan);
    (void)manager.take_table_changes();
    scheduler.commit_rows(plan);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    scheduler.observe(plan, 1.0);
  }
  most.host_us = seconds / kSteps * 1e6;
  return most;
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

void run(const Shape& shape, double pool_sequences, int32_t length) {
  std::printf("%d layers, %d KV heads of %d, f16, pages of 16 tokens\n\n",
              shape.layers,
              shape.kv_heads,
              shape.head_dim);
  std::printf("Bytes held by one sequence, share of dense (metadata, share of what is held)\n");
  std::printf("| policy |");
  const int32_t lengths[] = {2048, 4096, 8192, 16384, 32768, 131072};
  for (const int32_t n : lengths) std::printf(" %dK |", n / 1024);
  std::printf("\n|---|---|---|---|---|---|---|\n");
  for (const Policy& policy : kPolicies) {
    const kv::KvGeometry g = geometry(shape, policy);
    std::printf("| %s |", policy.name);
    for (const int32_t n : lengths) {
      const int64_t held = g.bytes_for(n, false);
      if (policy.full_share == 1.0) {
        std::printf(" %.0f MiB |", mib(held));
        continue;
      }
      std::printf(" %.3f (%.2f %%) |",
                  static_cast<double>(held) / static_cast<double>(g.dense_cache_bytes(n)),
                  100.0 * static_cast<double>(record_bytes_of(g, n)) / static_cast<double>(held));
    }
    std::printf("\n");
  }
  const auto dense_bytes =
      static_cast<double>(geometry(shape, kPolicies[0]).bytes_for(length, true));
  const auto pool = static_cast<int64_t>(dense_bytes * pool_sequences);
  std::printf(
      "\nSequences of %d tokens that a pool of %.0f MiB decodes at once\n", length, mib(pool));
  std::printf(
      "| policy | sequences | of dense | MiB each | pool in use | host time of a step |\n"
      "|---|---|---|---|---|---|\n");
  int32_t dense = 0;
  for (const Policy& policy : kPolicies) {
    const Admitted result = admit(shape, policy, pool, length);
    if (dense == 0) dense = result.decoding;
    std::printf(
        "| %s | %d | %.2f | %.0f | %.0f %% | %.0f us |\n",
        policy.name,
        result.decoding,
        static_cast<double>(result.decoding) / dense,
        mib(result.held_bytes) / result.decoding,
        100.0 * static_cast<double>(result.held_bytes) / static_cast<double>(result.total_bytes),
        result.host_us);
  }
}

}  // namespace
}  // namespace headwater

int main(int argc, char** argv) {
  headwater::Shape shape;
  if (argc > 3) shape = {std::atoi(argv[1]), std::atoi(argv[2]), std::atoi(argv[3])};
  headwater::run(shape, argc > 4 ? std::atof(argv[4]) : 16, argc > 5 ? std::atoi(argv[5]) : 32768);
}
