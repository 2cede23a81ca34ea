// A device that reads as late as it may: what was sent from a slot is copied when the ring waits
// for the slot, and at the end.
#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <vector>

#include "kernels/base/row_ring.h"

namespace headwater {
namespace {

struct LazyDevice {
  std::map<int32_t, RowRing::Block> sent;  // by slot
  size_t most_sent = 0;
  std::byte* to = nullptr;
  int64_t row_bytes = 0;

  void read(int32_t slot) {
    const auto it = sent.find(slot);
    if (it == sent.end()) return;
    const RowRing::Block& block = it->second;
    std::copy_n(block.data, block.num_rows * row_bytes, to + block.first_row * row_bytes);
    sent.erase(it);
  }
  void upload(RowRing& ring, const std::vector<std::byte>& from, int64_t bytes_a_row) {
    row_bytes = bytes_a_row;
    ring.upload(
        from.data(),
        row_bytes,
        static_cast<int64_t>(from.size()) / row_bytes,
        [&](int32_t slot) { read(slot); },
        [&](const RowRing::Block& block) {
          REQUIRE(sent.emplace(block.slot, block).second);
          most_sent = std::max(most_sent, sent.size());
        });
  }
};

std::vector<std::byte> random_bytes(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(static_cast<size_t>(count));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

}  // namespace

TEST_CASE("RowRing: rows arrive bit for bit, whatever the size of the slots", "[kernels][unit]") {
  constexpr int64_t kRowBytes = 4099;  // an odd number: slots end in a part of a row
  ThreadPool pool(3);
  for (const int64_t num_rows : {1, 7, 1000})
    for (const int32_t num_slots : {1, 2, 4})
      for (const int64_t slot_bytes :
           {kRowBytes, 2 * kRowBytes - 1, int64_t{100'000}, int64_t{3 << 20}, int64_t{8 << 20}}) {
        CAPTURE(num_rows, num_slots, slot_bytes);
        std::vector<std::byte> slots(static_cast<size_t>(num_slots * slot_bytes));
        RowRing ring(slots.data(), num_slots, slot_bytes, pool);
        const std::vector<std::byte> from = random_bytes(num_rows * kRowBytes, 1);
        std::vector<std::byte> arrived(from.size());
        LazyDevice device;
        device.to = arrived.data();
        device.upload(ring, from, kRowBytes);
        for (int32_t slot = 0; slot < num_slots; ++slot) device.read(slot);
        REQUIRE(arrived == from);
        const int64_t rows_at_once = slot_bytes / kRowBytes;
        const int64_t blocks = (num_rows + rows_at_once - 1) / rows_at_once;
        CHECK(device.most_sent == static_cast<size_t>(std::min<int64_t>(blocks, num_slots)));
      }
}

TEST_CASE("RowRing: the slots go round over matrices of other rows", "[kernels][unit]") {
  ThreadPool pool(2);
  std::vector<std::byte> slots(3 * 1000);
  RowRing ring(slots.data(), 3, 1000, pool);
  std::vector<int32_t> used;
  const auto note = [&](const RowRing::Block& block) { used.push_back(block.slot); };
  const std::vector<std::byte> from = random_bytes(4000, 2);
  ring.upload(
      from.data(), 400, 4, [](int32_t) {}, note);  // two rows a slot
  ring.upload(
      from.data(), 1000, 2, [](int32_t) {}, note);  // one
  ring.upload(
      from.data(), 1, 10, [](int32_t) {}, note);  // all
  CHECK(used == std::vector<int32_t>{0, 1, 2, 0, 1});
}

}  // namespace headwater
