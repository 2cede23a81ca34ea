// Draws: an Ops against the same body on one thread.
#include <random>

#include "tests/kernels/device_memory.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test

namespace {

std::vector<TokenDraw> draws() {
  std::vector<TokenDraw> all;
  for (const float temperature : {0.0f, 0.4f, 1.0f, 1.5f})
    for (const float top_p : {1.0f, 0.5f, 0.95f})
      for (const float min_p : {0.0f, 0.05f})
        for (const int32_t top_k : {0, 1, 40, 128})
          all.push_back({.by_host = false,
                         .temperature = temperature,
                         .top_p = top_p,
                         .min_p = min_p,
                         .top_k = top_k,
                         .choice = static_cast<uint32_t>(all.size() % 3),
                         .position = static_cast<uint32_t>(all.size()),
                         .seed = uint64_t{77} << 33 | all.size()});
  all.emplace_back();  // the host's
  return all;
}

void check(Ops& ops) {
  const std::vector<TokenDraw> all = draws();
  std::mt19937 random(3);
  for (const int64_t cols : {1, 100, 255, 4096 + 17, 49'152}) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> values;
    std::vector<std::vector<float>> rows(all.size());
    for (size_t i = 0; i < all.size(); ++i) {
      const float scale = i % 2 == 0 ? 1.0f : 5.0f;
      for (int64_t c = 0; c < cols; ++c) {
        const float x = scale * normal(random);
        rows[i].push_back(i % 3 == 0 ? std::round(4 * x) / 4 : x);  // equals
      }
      values.insert(values.end(), rows[i].begin(), rows[i].end());
    }
    DeviceMemory memory(ops);
    const Matrix logits = memory.rows(values, std::ssize(all));
    auto* tops = memory.put(std::vector<TopLogits>(all.size()));
    auto* tokens = memory.put(std::vector<int32_t>(all.size()));
    ops.top_logits(logits, tops);
    const Buffer staged = ops.allocate_staging(std::ssize(all) * int64_t{sizeof(int32_t)});
    ops.draw_tokens(logits, tops, memory.put(all), tokens, staged.as<int32_t>());
    std::vector<int32_t> got(all.size());
    ops.download(got.data(), tokens, static_cast<int64_t>(got.size() * sizeof(int32_t)));
    ops.wait(ops.mark());
    REQUIRE(std::equal(got.begin(), got.end(), staged.as<int32_t>()));
    DrawScratch scratch;
    int num_decided = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      CAPTURE(cols, i);
      const int32_t expected =
          draw_token(rows[i].data(), top_logits(rows[i]), all[i], cols, scratch, OneThread());
      // Where the normaliser's last digits decide whether the likeliest can tell, either may say
      // no.
      if (got[i] == kUndecided || expected == kUndecided) {
        REQUIRE((all[i].by_host || (all[i].temperature > 0 && all[i].top_k == 0)));
        continue;
      }
      ++num_decided;
      REQUIRE(got[i] == expected);
    }
    REQUIRE(num_decided >= (cols <= kTopLogits ? 92 : 66));
  }
}

void check_take(Ops& ops) {
  DeviceMemory memory(ops);
  const std::vector<int32_t> drawn = {50, kUndecided, 70};
  std::vector<int32_t> ids(600, 9);
  ids[0] = -3;
  ids[299] = -1;
  ids[599] = -2;
  auto* device = memory.put(ids);
  ops.take_tokens(memory.put(drawn), device, std::ssize(ids));
  std::vector<int32_t> got(ids.size());
  ops.download(got.data(), device, static_cast<int64_t>(got.size() * sizeof(int32_t)));
  ops.synchronize();
  ids[0] = 70;
  ids[299] = 50;
  ids[599] = 0;
  REQUIRE(got == ids);
}

}  // namespace

TEST_CASE("token_draw: the host's", "[ops][unit]") {
  ThreadPool pool(1);
  const auto ops = make_ref_ops(pool);
  check(*ops);
  check_take(*ops);
}

TEST_CASE("token_draw: CudaOps", "[ops][cuda]") {
  if (const auto ops = cuda_or_skip()) {
    check(*ops);
    check_take(*ops);
  }
}

TEST_CASE("CudaOps: what is uploaded early is there for what is called next", "[ops][cuda]") {
  const auto ops = cuda_or_skip();
  if (!ops) return;
  constexpr int32_t kSteps = 40, kEntries = 1000;
  const Buffer table = ops->allocate(kSteps * kEntries * int64_t{sizeof(int32_t)});
  Buffer slots[2];  // each is used again once its step is done
  for (Buffer& slot : slots) slot = ops->allocate(kEntries * int64_t{sizeof(TableEntry)});
  ops->synchronize();
  std::vector<int64_t> marks;
  for (int32_t step = 0; step < kSteps; ++step) {
    const Buffer& slot = slots[step % 2];
    if (step >= 2) ops->wait(marks[static_cast<size_t>(step - 2)]);
    std::vector<TableEntry> entries;
    for (int32_t i = 0; i < kEntries; ++i) entries.push_back({step * kEntries + i, 7 * step + i});
    ops->upload_early(slot.data(), entries.data(), slot.bytes());
    ops->write_table(table.as<int32_t>(), slot.as<TableEntry>(), kEntries);
    marks.push_back(ops->mark());
  }
  ops->wait(marks.back());
  std::vector<int32_t> got(kSteps * kEntries);
  ops->fetch(got.data(), table.data(), table.bytes());
  for (int32_t i = 0; i < kSteps * kEntries; ++i)
    REQUIRE(got[static_cast<size_t>(i)] == 7 * (i / kEntries) + i % kEntries);
}

TEST_CASE("CudaOps: more recorded steps than are kept give what their operations give",
          "[ops][cuda]") {
  const auto ops = cuda_or_skip();
  if (!ops) return;
  constexpr uint64_t kSteps = 1100;
  DeviceMemory memory(*ops);
  const Matrix one = memory.rows(std::vector<float>(8, 1.0f), 1);
  const Matrix sum = memory.rows(std::vector<float>(8, 0.0f), 1);
  for (uint64_t key = 1; key <= kSteps; ++key)
    for (int call = 0; call < 3; ++call)  // runs, is recorded, is launched
      ops->replay(key, [&] { ops->add_scaled(one, 1.0f, sum); });
  CHECK(memory.get(sum) == std::vector<float>(8, 3.0f * kSteps));
}

TEST_CASE("CudaOps: an upload's memory may be reused at once, a fetch passes what is under way",
          "[ops][cuda]") {
  const auto ops = cuda_or_skip();
  if (!ops) return;
  constexpr int32_t kSteps = 40;
  const Buffer device = ops->allocate(kSteps * 4096);
  for (int32_t step = 0; step < kSteps; ++step) {
    const std::vector<int32_t> values(1024, step);
    ops->upload(device.data() + step * 4096, values.data(), 4096);
  }
  const int64_t mark = ops->mark();
  ops->wait(mark);
  std::vector<int32_t> got(kSteps * 1024);
  ops->fetch(got.data(), device.data(), kSteps * 4096);
  for (int32_t i = 0; i < kSteps * 1024; ++i) REQUIRE(got[static_cast<size_t>(i)] == i / 1024);
}
