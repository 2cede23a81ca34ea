#include "engine/offline/offline_bench.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>

#include "kernels/base/check.h"

namespace headwater {
namespace {

constexpr int32_t kPageTokens = 16;
constexpr int32_t kMaxBatch = 256;
constexpr int64_t kInt = sizeof(int32_t);
constexpr size_t kAlignment = 16;  // of an array of a step

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

template <typename T>
void upload(Ops& ops, const Buffer& buffer, const std::vector<T>& values) {
  ops.upload(buffer.data(), values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
}

// Runs once to warm up, then `repetitions` times: median and slowest.
template <typename Body>
void measure(OfflineResult& result, int repetitions, const Body& body) {
  std::vector<double> seconds;
  for (int i = 0; i <= repetitions; ++i) {
    const Clock::time_point begin = Clock::now();
    body();
    if (i > 0) seconds.push_back(seconds_since(begin));
  }
  std::ranges::sort(seconds);
  result.seconds = seconds[seconds.size() / 2];
  result.slowest_seconds = seconds.back();
}

std::vector<uint16_t> random_halves(size_t count) {  // f16 or bf16 below 1, of either sign
  std::mt19937 random(5);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = static_cast<uint16_t>((random() & 0x83FF) | (9 << 10));
  return values;
}

// Numbers, not zeros: a period uploaded, then doubled.
void fill(Ops& ops, const Buffer& buffer, DType format) {
  const int64_t granules = buffer.bytes() / kPageGranuleBytes;
  const int64_t period = std::min<int64_t>(granules, 1 << 16);
  std::vector<uint16_t> halves = random_halves(static_cast<size_t>(period * kPageGranuleBytes / 2));
  if (format == DType::kF32)  // 0x2xxx2xxx: small floats
    for (uint16_t& value : halves) value = static_cast<uint16_t>((value & 0x83FF) | 0x3C00);
  upload(ops, buffer, halves);
  for (int64_t have = period; have < granules;) {
    constexpr int64_t kCopied = 256;  // granules at once
    const int64_t count = std::min(have, granules - have) / kCopied;
    if (count == 0) break;
    std::vector<PageId> from, to;
    for (int64_t i = 0; i < count; ++i) {
      from.push_back(static_cast<PageId>(i * kCopied));
      to.push_back(static_cast<PageId>(have + i * kCopied));
    }
    ops.copy_pages(buffer.data(), kCopied * kPageGranuleBytes, from, to);
    have += count * kCopied;
  }
}

}  // namespace

OfflineBench::OfflineBench(const RandomModel& model, Ops& ops, int32_t max_rows, int64_t max_tokens)
    : random_(model), ops_(ops), model_(model.files, ops, {max_rows, kMaxBatch}) {
  const ModelSpec& spec = model.files.spec;
  const HeadShape& heads = spec.layers[0].heads;
  page_ = {ops.default_kv_format(), heads.head_dim, kPageTokens, 0};
  const auto num_heads = static_cast<int32_t>(spec.layers.size()) * heads.num_kv_heads;
  max_pages_ = (max_tokens + kPageTokens - 1) / kPageTokens + kMaxBatch;
  arena_ = ops.allocate(max_pages_ * num_heads * page_.page_bytes());
  fill(ops, arena_, page_.format);
  ops.synchronize();
  tables_ = ops.allocate(max_pages_ * num_heads * kInt);
  groups_ = ops.allocate(sizeof(KvGroupShape));
  upload(ops, groups_, std::vector{KvGroupShape{page_, num_heads}});
  std::vector<KvHeadSlot> slots;
  for (int32_t head = 0; head < num_heads; ++head) slots.push_back({0, head});
  heads_ = ops.allocate(static_cast<int64_t>(slots.size() * sizeof(KvHeadSlot)));
  upload(ops, heads_, slots);
  const int64_t rows = std::max(max_rows, kMaxBatch);
  window_start_ = ops.allocate(rows * kInt);
  step_ = ops.allocate((3 * rows + 4 * kMaxBatch + 1) * kInt + 6 * kAlignment);
  ops.reserve(spec.max_positions);
  view_.pages.arena = arena_.data();
  view_.pages.tables = tables_.as<int32_t>();
  view_.pages.groups = groups_.as<KvGroupShape>();
  view_.pages.heads = heads_.as<KvHeadSlot>();
  view_.pages.window_start = window_start_.as<int32_t>();  // zeros: everything is seen
  view_.pages.num_groups = 1;
  view_.pages.format = page_.format;
}

// Pages in random order, as after hours of service.
void OfflineBench::lay_out(int32_t batch, int32_t capacity) {
  const auto num_heads = heads_.bytes() / int64_t{sizeof(KvHeadSlot)};
  const int64_t pages = (capacity + kPageTokens - 1) / kPageTokens;
  HW_CHECK(batch <= kMaxBatch && batch * pages <= max_pages_, "tokens of all sequences", capacity);
  entries_ = pages * num_heads;
  std::vector<int32_t> table(static_cast<size_t>(batch * entries_));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(1));
  const auto granules = static_cast<int32_t>(page_.page_bytes() / kPageGranuleBytes);
  for (int32_t& id : table) id *= granules;
  upload(ops_, tables_, table);
  ops_.synchronize();
}

// As the engine: what a step reads comes in one copy, and the host prepares a step while the one
// before it runs.
void OfflineBench::step(int32_t seq, int32_t rows, int32_t batch, int32_t position) {
  const bool decodes = rows == 0;
  const int32_t num_rows = decodes ? batch : rows;
  const int32_t num_seqs = decodes ? batch : 1;
  std::vector<std::byte> bytes;
  const auto put = [&]<typename T>(T* /*type*/, int32_t count, const auto& value) {
    bytes.resize((bytes.size() + kAlignment - 1) / kAlignment * kAlignment);
    auto* const at = reinterpret_cast<T*>(step_.data() + bytes.size());
    for (int32_t i = 0; i < count; ++i) {
      const T element = value(i);
      bytes.insert(bytes.end(),
                   reinterpret_cast<const std::byte*>(&element),
                   reinterpret_cast<const std::byte*>(&element + 1));
    }
    return at;
  };
  int32_t* const ints = nullptr;
  const auto first_row = [&](int32_t s) { return decodes ? s : s * rows; };
  view_.token_ids = put(ints, num_rows, [&](int32_t i) {
    return (position + 31 * i) % random_.files.spec.vocab_size;
  });
  view_.positions =
      put(ints, num_rows, [&](int32_t i) { return decodes ? position : position + i; });
  view_.row_seq = put(ints, num_rows, [&](int32_t i) { return decodes ? i : 0; });
  view_.row_begin = put(ints, num_seqs + 1, first_row);
  view_.logit_rows = put(ints, num_seqs, [&](int32_t s) { return first_row(s + 1) - 1; });
  view_.pages.table_begin = put(static_cast<int64_t*>(nullptr), num_seqs, [&](int32_t s) {
    return (decodes ? s : seq) * entries_;
  });
  ops_.upload(step_.data(), bytes.data(), static_cast<int64_t>(bytes.size()));
  view_.num_rows = num_rows;
  view_.num_seqs = num_seqs;
  view_.num_logit_rows = num_seqs;
  ops_.replay(decodes ? static_cast<uint64_t>(batch) : 0, [&] { model_.forward(view_); });
  const int64_t mark = ops_.mark();
  if (mark > 0) ops_.wait(mark - 1);
}

OfflineResult OfflineBench::prefill(int32_t batch, int32_t tokens, int repetitions) {
  OfflineResult result;
  result.batch = batch;
  result.prompt = tokens;
  const ModelSpec& spec = random_.files.spec;
  lay_out(batch, tokens);
  const int32_t chunk = model_.limits().max_rows;
  measure(result, repetitions, [&] {
    for (int32_t seq = 0; seq < batch; ++seq)
      for (int32_t first = 0; first < tokens; first += chunk)
        step(seq, std::min(chunk, tokens - first), 1, first);
    ops_.synchronize();
  });
  const HeadShape& heads = spec.layers[0].heads;
  const double layers = static_cast<double>(spec.layers.size());
  result.flops = batch * (2.0 * static_cast<double>(random_.num_matrix_parameters) * tokens +
                          2.0 * static_cast<double>(random_.num_output_parameters) +
                          2.0 * layers * heads.num_heads * heads.head_dim * tokens * tokens);
  result.bytes = random_.read_bytes * batch * ((tokens + chunk - 1) / chunk);
  return result;
}

OfflineResult OfflineBench::decode(int32_t batch, int32_t depth, int32_t tokens, int repetitions) {
  OfflineResult result;
  result.batch = batch;
  result.generated = tokens;
  result.depth = depth;
  const ModelSpec& spec = random_.files.spec;
  lay_out(batch, depth + tokens);
  measure(result, repetitions, [&] {
    for (int32_t i = 0; i < tokens; ++i) step(0, 0, batch, depth + i);
    ops_.synchronize();
  });
  const HeadShape& heads = spec.layers[0].heads;
  const auto layers = static_cast<int64_t>(spec.layers.size());
  const int64_t token_bytes =
      layers * heads.num_kv_heads * heads.head_dim * 2 * dtype_bytes(page_.format);
  const int64_t seen = int64_t{depth} * tokens + int64_t{tokens} * (tokens + 1) / 2;
  result.bytes = random_.read_bytes * tokens + token_bytes * batch * seen;
  result.flops =
      2.0 * static_cast<double>(random_.files.num_parameters) * batch * tokens +
      4.0 * static_cast<double>(layers * heads.num_heads * heads.head_dim * batch * seen);
  return result;
}

// The lower half of a buffer that no cache holds to the upper one.
double OfflineBench::copy_bytes_per_second() {
  constexpr int64_t kPage = int64_t{1} << 20;
  const int64_t pages = ops_.memory_is_host() ? 256 : 1024;  // of each half
  const Buffer buffer = ops_.allocate(2 * pages * kPage);
  fill(ops_, buffer, DType::kF16);
  constexpr int kTimes = 8;  // in one call, so that nothing lies between them
  std::vector<PageId> from, to;
  for (int64_t i = 0; i < kTimes * pages; ++i) {
    from.push_back(static_cast<PageId>(i % pages * (kPage / kPageGranuleBytes)));
    to.push_back(static_cast<PageId>((pages + i % pages) * (kPage / kPageGranuleBytes)));
  }
  OfflineResult result;
  measure(result, 5, [&] {
    ops_.copy_pages(buffer.data(), kPage, from, to);
    ops_.synchronize();
  });
  return 2.0 * kTimes * static_cast<double>(pages * kPage) / result.seconds;
}

double OfflineBench::product_flops_per_second() {
  const int64_t size = 8192;
  const std::vector<uint16_t> halves = random_halves(static_cast<size_t>(size * size));
  const WeightView view{QuantFormat::kF16, size, size, halves.data()};
  const auto weight = ops_.load_weight({&view, 1});
  const Buffer x = ops_.allocate(size * size * 4), out = ops_.allocate(size * size * 4);
  std::vector<float> values(halves.size());
  std::mt19937 random(9);
  for (float& value : values) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  upload(ops_, x, values);
  constexpr int kTimes = 5;
  OfflineResult result;
  measure(result, 5, [&] {
    for (int i = 0; i < kTimes; ++i)
      ops_.linear(*weight,
                  {x.data(), DType::kF32, size, size, size},
                  {out.data(), DType::kF32, size, size, size},
                  LinearMode::kOverwrite);
    ops_.synchronize();
  });
  return 2.0 * kTimes * static_cast<double>(size * size * size) / result.seconds;
}

}  // namespace headwater
