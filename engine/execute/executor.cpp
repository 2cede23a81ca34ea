#include "engine/execute/executor.h"

#include <algorithm>

namespace headwater {
namespace {

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
  constexpr int64_t kInt = sizeof(int32_t);
  token_ids_ = ops.allocate(rows * kInt);
  positions_ = ops.allocate(rows * kInt);
  row_seq_ = ops.allocate(rows * kInt);
  row_begin_ = ops.allocate((max_seqs + 1) * kInt);
  logit_rows_ = ops.allocate(model.limits().max_logit_rows * kInt);
  table_begin_ = ops.allocate(int64_t{max_seqs} * geometry.num_groups() * 2 * kInt);
  window_start_ = ops.allocate(rows * geometry.num_groups() * kInt);
}

Matrix Executor::run(const StepPlan& plan) {
  for (const kv::PageCopy& copy : plan.copies)
    ops_.copy_pages(arena_.data(), copy.page_bytes, copy.from, copy.to);
  if (tables_.data() != nullptr) ops_.write_table(tables_.as<int32_t>(), kv_.take_table_changes());
  const auto send = [&](const Buffer& buffer, const auto& values) {
    upload(ops_, buffer, std::span(values));
  };
  send(token_ids_, plan.token_ids);
  send(positions_, plan.positions);
  send(row_seq_, plan.row_seq);
  send(row_begin_, plan.row_begin);
  send(logit_rows_, plan.logit_rows);
  send(table_begin_, plan.table_begin);
  send(window_start_, plan.window_start);

  StepView step;
  step.num_rows = plan.num_rows;
  step.num_seqs = static_cast<int32_t>(plan.sequences.size());
  step.num_logit_rows = plan.num_logit_rows;
  step.token_ids = token_ids_.as<int32_t>();
  step.positions = positions_.as<int32_t>();
  step.row_seq = row_seq_.as<int32_t>();
  step.row_begin = row_begin_.as<int32_t>();
  step.logit_rows = logit_rows_.as<int32_t>();
  step.pages.arena = arena_.data();
  step.pages.tables = tables_.data() != nullptr ? tables_.as<int32_t>() : kv_.tables();
  step.pages.table_begin = table_begin_.as<int64_t>();
  step.pages.groups = groups_.as<KvGroupShape>();
  step.pages.heads = heads_.as<KvHeadSlot>();
  step.pages.window_start = window_start_.as<int32_t>();
  step.pages.num_groups = kv_.geometry().num_groups();
  step.pages.compensates = compensates_;

  const Matrix logits = model_.forward(step, plan.num_long_rows);
  host_logits_.resize(static_cast<size_t>(logits.rows * logits.cols));
  ops_.download(
      host_logits_.data(), logits.data, static_cast<int64_t>(host_logits_.size() * sizeof(float)));
  ops_.synchronize();
  return {host_logits_.data(), DType::kF32, logits.rows, logits.cols, logits.cols};
}

}  // namespace headwater
