#include "engine/calibrate/probe.h"

#include <algorithm>
#include <numeric>

#include "engine/attention/policy_table.h"
#include "engine/sample/softmax.h"
#include "kernels/base/check.h"

namespace headwater {
namespace {

constexpr int64_t kInt = sizeof(int32_t);

template <typename T>
void upload(Ops& ops, const Buffer& buffer, const std::vector<T>& values) {
  if (!values.empty())
    ops.upload(
        buffer.data(), values.data(), static_cast<int64_t>(values.size()) * int64_t{sizeof(T)});
}

template <typename T>
Buffer to_device(Ops& ops, const std::vector<T>& values) {
  Buffer buffer = ops.allocate(static_cast<int64_t>(values.size()) * int64_t{sizeof(T)});
  upload(ops, buffer, values);
  return buffer;
}

PageShape page_shape(const ModelSpec& spec, const Ops& ops, int32_t page_tokens) {
  return {ops.default_kv_format(), spec.layers[0].heads.head_dim, page_tokens, 0};
}

kv::KvGeometry make_geometry(const ModelSpec& spec, const PageShape& page, Probe::Rules rules) {
  const auto layers = static_cast<int32_t>(spec.layers.size());
  return {layers, spec.layers[0].heads.num_kv_heads, rules, page};
}

std::vector<kv::RetentionRule> keep_all(const ModelSpec& spec) {
  return std::vector<kv::RetentionRule>(spec.layers.size() *
                                        static_cast<size_t>(spec.layers[0].heads.num_kv_heads));
}

}  // namespace

Probe::Probe(Model& model, Ops& ops, int32_t page_tokens)
    : model_(model),
      ops_(ops),
      geometry_(make_geometry(
          model.spec(), page_shape(model.spec(), ops, page_tokens), keep_all(model.spec()))),
      page_(page_shape(model.spec(), ops, page_tokens)) {
  for (int32_t head = 0; head < geometry_.num_heads(); ++head) heads_.push_back({head, 0});
  groups_.resize(heads_.size());
  device_heads_ = to_device(ops, heads_);
  device_groups_ = ops.allocate(static_cast<int64_t>(groups_.size() * sizeof(KvGroupShape)));
  ops.reserve(model.spec().max_positions);
  const int64_t rows = model.limits().max_rows;
  token_ids_ = ops.allocate(rows * kInt);
  positions_ = ops.allocate(rows * kInt);
  row_seq_ = ops.allocate(rows * kInt);  // zeros: there is one sequence
  row_begin_ = ops.allocate(2 * kInt);
  logit_rows_ = ops.allocate(model.limits().max_logit_rows * kInt);
  window_start_ = ops.allocate(rows * num_heads() * kInt);
}

ProbePrompt Probe::read(std::span<const int32_t> tokens, int32_t max_new_tokens) {
  HW_CHECK(!tokens.empty() && max_new_tokens >= 0, "a prompt has a token", tokens.size());
  ProbePrompt prompt;
  prompt.tokens_.assign(tokens.begin(), tokens.end());
  prompt.max_tokens_ = static_cast<int32_t>(tokens.size()) + max_new_tokens;
  prompt.records_.resize(heads_.size());

  // Per head: its pages, then a record for each, in the table as in the arena.
  const int64_t pages = geometry_.pages_for(prompt.max_tokens_);
  const int64_t page_step = page_.page_bytes() / kPageGranuleBytes;
  const int64_t record_step = record_bytes(page_) / kPageGranuleBytes;
  const int64_t head_step = pages * (page_step + record_step);
  std::vector<int32_t> tables;
  std::vector<int64_t> table_begin;
  for (int64_t head = 0; head < num_heads(); ++head) {
    table_begin.push_back(static_cast<int64_t>(tables.size()));
    for (int64_t page = 0; page < pages; ++page)
      tables.push_back(static_cast<PageId>(head * head_step + page * page_step));
    for (int64_t block = 0; block < pages; ++block)
      tables.push_back(
          static_cast<PageId>(head * head_step + pages * page_step + block * record_step));
  }
  prompt.arena_ = ops_.allocate(num_heads() * head_step * kPageGranuleBytes);
  prompt.tables_ = to_device(ops_, tables);
  prompt.table_begin_ = to_device(ops_, table_begin);

  set_rules(prompt, keep_all(spec()));
  run(prompt, tokens, 0, 1, prompt.logits_);
  return prompt;
}

// The rules take force for the rows that follow; of the prompt's blocks, the records that they need
// and that are not there are summed.
void Probe::set_rules(ProbePrompt& prompt, Rules rules) {
  std::vector<kv::RetentionRule> fitted(rules.begin(), rules.end());
  fit_to_layers(spec(), fitted);
  geometry_ = make_geometry(spec(), page_, fitted);
  const int64_t record_begin = geometry_.pages_for(prompt.max_tokens_);
  bool missing = false;
  std::vector<KvGroupShape> to_fold;
  for (size_t head = 0; head < heads_.size(); ++head) {
    const kv::RetentionRule& rule =
        geometry_.groups()[static_cast<size_t>(geometry_.heads()[head].group)].rule;
    KvGroupShape shape{page_, 1, rule.sink_tokens, rule.block_tokens};
    shape.shard_stride = rule.shard_stride;
    shape.shard_phase = rule.shard_phase;
    shape.record_begin = rule.compensate ? record_begin : -1;
    groups_[head] = shape;
    const ProbePrompt::Records needed{rule.sink_tokens, rule.block_tokens};
    if (!rule.compensate || prompt.records_[head] == needed) {
      shape.record_begin = -1;
    } else {
      prompt.records_[head] = needed;
      missing = true;
    }
    to_fold.push_back(shape);
  }
  if (missing && !prompt.logits_.empty()) {
    upload(ops_, device_groups_, to_fold);
    const std::span<const int32_t> tokens = prompt.tokens_;
    const auto chunk = static_cast<size_t>(model_.limits().max_rows);
    for (size_t first = 0; first < tokens.size(); first += chunk) {
      const StepView step = make_step(prompt,
                                      tokens.subspan(first, std::min(chunk, tokens.size() - first)),
                                      static_cast<int32_t>(first),
                                      0);
      for (size_t layer = 0; layer < spec().layers.size(); ++layer)
        ops_.fold_kv(static_cast<int32_t>(layer), spec().layers[layer].heads, step);
      ops_.synchronize();
    }
  }
  upload(ops_, device_groups_, groups_);
}

StepView Probe::make_step(const ProbePrompt& prompt,
                          std::span<const int32_t> tokens,
                          int32_t first_position,
                          int32_t num_logit_rows) {
  const auto num_rows = static_cast<int32_t>(tokens.size());
  std::vector<int32_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), first_position);
  std::vector<int32_t> logit_rows(static_cast<size_t>(num_logit_rows));
  std::iota(logit_rows.begin(), logit_rows.end(), num_rows - num_logit_rows);
  std::vector<int32_t> window_start;
  const auto prompt_end = static_cast<int32_t>(prompt.tokens_.size());
  bool compensates = false;
  for (const KvHeadSlot& head : geometry_.heads()) {
    const kv::RetentionRule& rule = geometry_.groups()[static_cast<size_t>(head.group)].rule;
    compensates = compensates || rule.compensate;
    for (const int32_t position : positions)
      window_start.push_back(position < prompt_end ? rule.layer_start(position)
                                                   : rule.window_start(position));
  }
  upload(ops_, token_ids_, std::vector<int32_t>(tokens.begin(), tokens.end()));
  upload(ops_, positions_, positions);
  upload(ops_, row_begin_, std::vector<int32_t>{0, num_rows});
  upload(ops_, logit_rows_, logit_rows);
  upload(ops_, window_start_, window_start);

  StepView step;
  step.num_rows = num_rows;
  step.num_seqs = 1;
  step.num_logit_rows = num_logit_rows;
  step.token_ids = token_ids_.as<int32_t>();
  step.positions = positions_.as<int32_t>();
  step.row_seq = row_seq_.as<int32_t>();
  step.row_begin = row_begin_.as<int32_t>();
  step.logit_rows = logit_rows_.as<int32_t>();
  step.pages.arena = prompt.arena_.data();
  step.pages.tables = prompt.tables_.as<int32_t>();
  step.pages.table_begin = prompt.table_begin_.as<int64_t>();
  step.pages.groups = device_groups_.as<KvGroupShape>();
  step.pages.heads = device_heads_.as<KvHeadSlot>();
  step.pages.window_start = window_start_.as<int32_t>();
  step.pages.num_groups = num_heads();
  step.pages.compensates = compensates;
  step.pages.format = page_.format;
  return step;
}

void Probe::run(const ProbePrompt& prompt,
                std::span<const int32_t> tokens,
                int32_t first_position,
                int32_t num_logit_rows,
                std::vector<float>& out) {
  HW_CHECK(first_position + static_cast<int64_t>(tokens.size()) <= prompt.max_tokens_,
           "rows behind a prompt's room of",
           prompt.max_tokens_);
  int32_t max_rows = model_.limits().max_rows;
  if (num_logit_rows > 1) max_rows = std::min(max_rows, model_.limits().max_logit_rows);
  const auto num_rows = static_cast<int32_t>(tokens.size());
  const int32_t first_logit_row = num_rows - num_logit_rows;
  for (int32_t first = 0; first < num_rows; first += max_rows) {
    const int32_t rows = std::min(max_rows, num_rows - first);
    const int32_t logit_rows = std::clamp(first + rows - first_logit_row, 0, rows);
    const StepView step =
        make_step(prompt,
                  tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(rows)),
                  first_position + first,
                  logit_rows);
    const bool is_long = !spec().long_ropes.empty() &&
                         static_cast<int64_t>(prompt.tokens_.size()) > spec().long_after;
    const Matrix logits = model_.forward(step, is_long ? step.num_rows : 0);
    const size_t end = out.size();
    out.resize(end + static_cast<size_t>(logits.rows * logits.cols));
    ops_.download(
        out.data() + end, logits.data, static_cast<int64_t>((out.size() - end) * sizeof(float)));
    ops_.synchronize();
  }
}

std::vector<float> Probe::logits(ProbePrompt& prompt,
                                 Rules rules,
                                 std::span<const int32_t> tokens) {
  std::vector<float> out;
  set_rules(prompt, rules);
  run(prompt,
      tokens,
      static_cast<int32_t>(prompt.tokens_.size()),
      static_cast<int32_t>(tokens.size()),
      out);
  return out;
}

std::vector<int32_t> Probe::greedy(ProbePrompt& prompt,
                                   Rules rules,
                                   int32_t max_tokens,
                                   std::span<const int32_t> stop_ids,
                                   std::span<const int32_t> follow) {
  set_rules(prompt, rules);
  auto position = static_cast<int32_t>(prompt.tokens_.size());
  std::vector<float> logits;
  run(prompt, follow, position, follow.empty() ? 0 : 1, logits);
  position += static_cast<int32_t>(follow.size());
  int32_t next = argmax(follow.empty() ? prompt.logits() : std::span<const float>(logits));
  std::vector<int32_t> tokens;
  while (static_cast<int32_t>(tokens.size()) < max_tokens && !std::ranges::count(stop_ids, next)) {
    tokens.push_back(next);
    if (static_cast<int32_t>(tokens.size()) == max_tokens) break;
    logits.clear();
    run(prompt, std::span(&next, 1), position++, 1, logits);
    next = argmax(logits);
  }
  return tokens;
}

}  // namespace headwater
