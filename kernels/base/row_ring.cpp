#include "kernels/base/row_ring.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"

namespace headwater {
namespace {

constexpr int64_t kTaskBytes = int64_t{1} << 20;  // what one thread copies at once

}  // namespace

RowRing::RowRing(std::byte* slots, int32_t num_slots, int64_t slot_bytes, ThreadPool& pool)
    : slots_(slots), num_slots_(num_slots), slot_bytes_(slot_bytes), pool_(pool) {}

void RowRing::upload(const std::byte* rows,
                     int64_t row_bytes,
                     int64_t num_rows,
                     const std::function<void(int32_t slot)>& wait,
                     const std::function<void(const Block&)>& send) {
  HW_CHECK(row_bytes > 0 && row_bytes <= slot_bytes_, "a row fits a slot", row_bytes);
  const int64_t rows_at_once = slot_bytes_ / row_bytes;
  for (int64_t first = 0; first < num_rows; first += rows_at_once) {
    const int32_t slot = next_;
    next_ = (next_ + 1) % num_slots_;
    wait(slot);
    const int64_t count = std::min(rows_at_once, num_rows - first);
    const int64_t bytes = count * row_bytes;
    const std::byte* from = rows + first * row_bytes;
    std::byte* to = slots_ + slot * slot_bytes_;
    pool_.parallel_for((bytes + kTaskBytes - 1) / kTaskBytes, [&](int64_t task, int) {
      const int64_t at = task * kTaskBytes;
      std::memcpy(to + at, from + at, static_cast<size_t>(std::min(kTaskBytes, bytes - at)));
    });
    send({slot, to, first, count});
  }
}

}  // namespace headwater
