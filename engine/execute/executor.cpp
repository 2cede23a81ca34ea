#include "engine/execute/executor.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace headwater {
namespace {

constexpr int64_t kAlignment = 16;    // of an array of a step
constexpr size_t kEntries = 1 << 14;  // changes of page tables that travel with a step

template <typename T>
void upload(Ops& ops, const Buffer& buffer, std::span<const T> values) {
  if (!values.empty())
    ops.upload(buffer.data(), values.data(), static_cast<int64_t>(values.size_bytes()));
}

}  // namespace

Executor::Executor(
    Model& model, Ops& ops, kv::KvManager& kv, int64_t arena_bytes, int32_t max_seqs, bool draws)
    : model_(model), ops_(ops), kv_(kv), draws_(draws), arena_(ops.allocate(arena_bytes)) {
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
  const int64_t max_logit_rows = model.limits().max_logit_rows;
  const int64_t num_groups = geometry.num_groups();
  const int64_t ints =
      rows * (3 + num_groups) + max_logit_rows + max_seqs * (1 + 2 * num_groups) + 1;
  constexpr int64_t kArrays = 9;
  const int64_t step_bytes = ints * int64_t{sizeof(int32_t)} +
                             max_logit_rows * int64_t{sizeof(TokenDraw)} +
                             int64_t{kEntries * sizeof(TableEntry)} + kArrays * kAlignment;
  for (Slot& slot : std::span(slots_).first(draws ? 2 : 1)) slot.step = ops.allocate(step_bytes);
  host_logits_ =
      ops.allocate_staging(max_logit_rows * model.spec().vocab_size * int64_t{sizeof(float)});
  ops.synchronize();  // the steps' memory is zeroed: uploads may come early
  if (!draws) return;
  tops_ = ops.allocate(max_logit_rows * int64_t{sizeof(TopLogits)});
  tokens_ = ops.allocate(max_logit_rows * int64_t{sizeof(int32_t)});
  for (Slot& slot : slots_) slot.host_tokens = ops.allocate_staging(tokens_.bytes());
}

void Executor::enqueue(const StepPlan& plan) {
  HW_CHECK(num_enqueued_ - num_done_ < (draws_ ? 2 : 1), "steps under way", num_enqueued_);
  for (const kv::PageCopy& copy : plan.copies)
    ops_.copy_pages(arena_.data(), copy.page_bytes, copy.from, copy.to);
  Slot& under_way = slot(num_enqueued_);
  // One upload; where an array lies depends on nothing but how long those before it are.
  host_step_.clear();
  const auto put = [&]<typename T>(std::span<const T> values) -> T* {
    const size_t at = (host_step_.size() + kAlignment - 1) / kAlignment * kAlignment;
    const auto bytes = std::as_bytes(values);
    host_step_.resize(at);
    host_step_.insert(host_step_.end(), bytes.begin(), bytes.end());
    return reinterpret_cast<T*>(under_way.step.data() + at);
  };

  StepView step;
  step.num_rows = plan.num_rows;
  step.num_seqs = static_cast<int32_t>(plan.sequences.size());
  step.num_logit_rows = plan.num_logit_rows;
  step.num_single_rows = plan.num_single_rows;
  step.position_bound = plan.position_bound;
  int32_t* token_ids = put(std::span(plan.token_ids));
  step.token_ids = token_ids;
  step.positions = put(std::span(plan.positions));
  step.row_seq = put(std::span(plan.row_seq));
  step.row_begin = put(std::span(plan.row_begin));
  step.logit_rows = put(std::span(plan.logit_rows));
  const TokenDraw* draws = put(std::span(plan.draws));
  step.pages.arena = arena_.data();
  step.pages.tables = tables_.data() != nullptr ? tables_.as<int32_t>() : kv_.tables();
  step.pages.table_begin = put(std::span(plan.table_begin));
  step.pages.groups = groups_.as<KvGroupShape>();
  step.pages.heads = heads_.as<KvHeadSlot>();
  step.pages.window_start = put(std::span(plan.window_start));
  step.pages.num_groups = kv_.geometry().num_groups();
  step.pages.compensates = compensates_;
  step.pages.format = kv_.geometry().groups()[0].page.format;

  std::span<const TableEntry> changes;
  if (tables_.data() != nullptr) changes = kv_.take_table_changes();
  TableEntry* entries = put(changes.first(std::min(changes.size(), kEntries)));
  HW_CHECK(std::ssize(host_step_) <= under_way.step.bytes(), "bytes of a step", host_step_.size());
  ops_.upload_early(under_way.step.data(), host_step_.data(), std::ssize(host_step_));
  for (size_t i = 0; i < changes.size(); i += kEntries) {
    const auto some = changes.subspan(i, std::min(kEntries, changes.size() - i));
    if (i > 0) ops_.upload(entries, some.data(), static_cast<int64_t>(some.size_bytes()));
    ops_.write_table(tables_.as<int32_t>(), entries, std::ssize(some));
  }

  // Decode steps of one size and bound differ in nothing but what the buffers hold. 21 bits of the
  // key for each number of rows: max-num-seqs has 17.
  const bool decodes = step.num_rows == step.num_seqs && step.num_logit_rows == step.num_rows;
  const auto buffer = static_cast<int32_t>(num_enqueued_ % (draws_ ? 2 : 1));
  const auto bound = static_cast<uint64_t>((plan.position_bound - 1) / kPositionBoundStep);
  const uint64_t key = bound << 43 | static_cast<uint64_t>(plan.num_long_rows) << 22 |
                       static_cast<uint64_t>(step.num_rows) << 1 | static_cast<uint64_t>(buffer);
  under_way.logits = model_.logits(step.num_logit_rows, buffer);
  ops_.replay(decodes ? key : 0, [&] {
    if (draws_) ops_.take_tokens(tokens_.as<int32_t>(), token_ids, step.num_rows);
    model_.forward(step, plan.num_long_rows, buffer);
    if (!draws_ || step.num_logit_rows == 0) return;  // chunks within a prompt have no logits
    ops_.top_logits(under_way.logits, tops_.as<TopLogits>());
    ops_.draw_tokens(under_way.logits,
                     tops_.as<TopLogits>(),
                     draws,
                     tokens_.as<int32_t>(),
                     under_way.host_tokens.as<int32_t>());
  });
  under_way.mark = ops_.mark();
  ++num_enqueued_;
}

std::span<const int32_t> Executor::wait() {
  HW_CHECK(num_done_ < num_enqueued_, "a step under way", num_done_);
  const Slot& done = slot(num_done_++);
  ops_.wait(done.mark);
  if (!draws_) return {};
  return {done.host_tokens.as<int32_t>(), static_cast<size_t>(done.logits.rows)};
}

Matrix Executor::fetch_logits(std::span<const int32_t> rows) {
  const Matrix& logits = slot(num_done_ - 1).logits;
  const Matrix host{host_logits_.data(), logits.dtype, logits.rows, logits.cols, logits.cols};
  for (size_t first = 0, end = 0; first < rows.size(); first = end) {  // runs in one go
    for (end = first + 1; end < rows.size() && rows[end] == rows[end - 1] + 1;) ++end;
    ops_.fetch(host.f32_row(rows[first]),
               logits.f32_row(rows[first]),
               static_cast<int64_t>(end - first) * logits.cols * int64_t{sizeof(float)});
  }
  return host;
}

}  // namespace headwater
