// Weights from a mapped file to the GPU, in the order of the stream. The host waits for a free slot
// of its ring (kernels/base/row_ring.h), never for a weight. Engine thread.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/base/cuda.cuh"
#include "kernels/base/row_ring.h"
#include "kernels/quant/quant_format.h"

namespace headwater::cuda {

class WeightUpload {
 public:
  // Takes a thread per usable CPU, 128 MiB of page-locked memory and 32 of the device's while it
  // lives. The stream is not owned.
  explicit WeightUpload(const Stream& stream);
  ~WeightUpload();  // once all has arrived
  WeightUpload(const WeightUpload&) = delete;
  WeightUpload& operator=(const WeightUpload&) = delete;

  // The rows of the view to `to`, to_row_bytes apart, as layout_cuda.cuh has them. Returns once the
  // view has been read; its last blocks are still on their way.
  void upload(const WeightView& view, uint8_t* to, int64_t to_row_bytes);

 private:
  static constexpr int32_t kSlots = 4;

  const Stream& stream_;
  ThreadPool readers_{0};
  Buffer slots_;
  Buffer blocks_;                   // device: of one slot, before their planes are taken apart
  std::array<Event, kSlots> read_;  // the device has read the slot
  RowRing ring_;
};

}  // namespace headwater::cuda
