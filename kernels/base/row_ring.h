// RowRing: rows of the host's pageable memory (a mapped file) on their way to a device. Threads
// copy a block of rows into one slot of page-locked memory while the device reads the slots before
// it. Knows no device: the caller says how one reads. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "kernels/base/thread_pool.h"

namespace headwater {

class RowRing {
 public:
  struct Block {  // whole rows, one behind another
    int32_t slot = 0;
    const std::byte* data = nullptr;
    int64_t first_row = 0, num_rows = 0;
  };

  // slots: num_slots * slot_bytes. Not owned, like the pool.
  RowRing(std::byte* slots, int32_t num_slots, int64_t slot_bytes, ThreadPool& pool);

  // Rows of row_bytes, at most slot_bytes, in their order. send(block) makes the device read it,
  // some time; wait(slot) returns once it has read the block sent last from that slot, if any was.
  void upload(const std::byte* rows,
              int64_t row_bytes,
              int64_t num_rows,
              const std::function<void(int32_t slot)>& wait,
              const std::function<void(const Block&)>& send);

 private:
  std::byte* slots_;
  int32_t num_slots_;
  int64_t slot_bytes_;
  ThreadPool& pool_;
  int32_t next_ = 0;  // slot
};

}  // namespace headwater
