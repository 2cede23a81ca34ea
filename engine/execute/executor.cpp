#include "engine/execute/executor.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace headwater {
namespace {

constexpr int64_t kAlignment = 16;  // of an array of a step

template <typename T>
void upload(Ops& ops, const Buffer& buffer, std::span<const T> values) {
  if (!values.empty())
    ops.upload(buffer.data(), values.data(), static_cast<int64_t>(values.size_bytes()));
}

}  // namespace

Executor::Executor(Model& model, Ops& ops, kv::KvManager& kv, int64_t arena_bytes, int32_t max_seqs)
    : model_(model), ops_(ops), kv_(kv), arena_(ops.allocate(arena_bytes)) {
  const kv::KvGeometry& geometry = kv.geometry();
  std::vector<KvGroupShape> groups;
  for (int32_t g = 0; g < geometry.num_groups(); ++g) {
    const kv::KvGroup& group = geometry.groups()[static_cast<size_t>(g)];
    groups.push_back({group.page,
                      group.num_heads,
                      group.rule.sink_tokens,
                      group.rule.block_tokens,
                      group.rule.shard_stride,
                      group.rule.shard_phase,
                      kv.record_begin(g)});
    compensates_ = compensates_ || group.rule.compensate;
  }
  groups_ = ops.allocate(static_cast<int64_t>(groups.size() * sizeof(KvGroupShape)));
  upload(ops, groups_, std::span<const KvGroupShape>(groups));
  heads_ = ops.allocate(static_cast<int64_t>(geometry.heads().size_bytes()));
  upload(ops, heads_, geometry.heads());

  if (!ops.memory_is_host()) {
    tables_ = ops.allocate(kv.table_bytes());
    kv.record_table_changes();
  }
  ops.reserve(kv.max_tokens());

  const int64_t rows = model.limits().max_rows;
  const int64_t num_groups = geometry.num_groups();
  const int64_t ints =
      rows * (3 + num_groups) + model.limits().max_logit_rows + max_seqs * (1 + 2 * num_groups) + 1;
  constexpr int64_t kArrays = 7;
  step_ = ops.allocate(ints * int64_t{sizeof(int32_t)} + kArrays * kAlignment);
}

Matrix Executor::run(const StepPlan& plan) {
  for (const kv::PageCopy& copy : plan.copies)
    ops_.copy_pages(arena_.data(), copy.page_bytes, copy.from, copy.to);
  if (tables_.data() != nullptr) ops_.write_table(tables_.as<int32_t>(), kv_.take_table_changes());
  // One upload; where an array lies depends on nothing but how long those before it are.
  host_step_.clear();
  const auto put = [&]<typename T>(const std::vector<T>& values) -> const T* {
    const size_t at = (host_step_.size() + kAlignment - 1) / kAlignment * kAlignment;
    const auto bytes = std::as_bytes(std::span(values));
    host_step_.resize(at);
    host_step_.insert(host_step_.end(), bytes.begin(), bytes.end());
    return reinterpret_cast<const T*>(step_.data() + at);
  };

  StepView step;
  step.num_rows = plan.num_rows;
  step.num_seqs = static_cast<int32_t>(plan.sequences.size());
  step.num_logit_rows = plan.num_logit_rows;
  step.token_ids = put(plan.token_ids);
  step.positions = put(plan.positions);
  step.row_seq = put(plan.row_seq);
  step.row_begin = put(plan.row_begin);
  step.logit_rows = put(plan.logit_rows);
  step.pages.arena = arena_.data();
  step.pages.tables = tables_.data() != nullptr ? tables_.as<int32_t>() : kv_.tables();
  step.pages.table_begin = put(plan.table_begin);
  step.pages.groups = groups_.as<KvGroupShape>();
  step.pages.heads = heads_.as<KvHeadSlot>();
  step.pages.window_start = put(plan.window_start);
  step.pages.num_groups = kv_.geometry().num_groups();
  step.pages.compensates = compensates_;
  step.pages.format = kv_.geometry().groups()[0].page.format;

  HW_CHECK(
      static_cast<int64_t>(host_step_.size()) <= step_.bytes(), "bytes of a step", step_.bytes());
  upload(ops_, step_, std::span<const std::byte>(host_step_));

  // Decode steps of one size differ in nothing but what the buffers hold.
  const bool decodes = step.num_rows == step.num_seqs && step.num_logit_rows == step.num_rows;
  const uint64_t key = static_cast<uint64_t>(plan.num_long_rows) << 32 |
                       static_cast<uint64_t>(static_cast<uint32_t>(step.num_rows));
  Matrix logits;
  ops_.replay(decodes ? key : 0, [&] { logits = model_.forward(step, plan.num_long_rows); });
  if (logits.data == nullptr) logits = model_.logits(step.num_logit_rows);
  host_logits_.resize(static_cast<size_t>(logits.rows * logits.cols));
  if (!host_logits_.empty())  // chunks within a prompt have no logits
    ops_.download(host_logits_.data(),
                  logits.data,
                  static_cast<int64_t>(host_logits_.size() * sizeof(float)));
  ops_.synchronize();
  return {host_logits_.data(), DType::kF32, logits.rows, logits.cols, logits.cols};
}

}  // namespace headwater
