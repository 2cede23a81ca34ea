// How weights come into shared memory: stages of a few rows, copied by the warp that reads them,
// asynchronously and ahead of what it multiplies.
#pragma once

#include <cstdint>

#include "kernels/base/mma_cuda.cuh"
#include "kernels/quant/decode_cuda.cuh"

namespace headwater::cuda {

// kElements of one row, planes and all, as if the row had no more.
template <QuantFormat kFormat, int kElements>
struct Stage {
  static constexpr int kBlocks = kElements / planes_of(kFormat).elements;
  static constexpr int kBytes = static_cast<int>(device_row_bytes(kFormat, kElements));

  // Stage `stage` of rows first, ... first + kRows - 1 of a weight (behind its end: the last row
  // again) to rows `pitch` bytes apart. What lies behind the end of a row is not copied.
  template <int kRows>
  __device__ static void copy(const uint8_t* weight,
                              int64_t row_bytes,
                              int32_t num_rows,
                              int32_t num_blocks,
                              int32_t first,
                              int32_t stage,
                              uint8_t* to,
                              int pitch,
                              int lane) {
    copy_planes<kRows, 0>(weight, row_bytes, num_rows, num_blocks, first, stage, to, pitch, lane);
  }

 private:
  template <int kRows, int kPlane>
  __device__ static void copy_planes(const uint8_t* weight,
                                     int64_t row_bytes,
                                     int32_t num_rows,
                                     int32_t num_blocks,
                                     int32_t first,
                                     int32_t stage,
                                     uint8_t* to,
                                     int pitch,
                                     int lane) {
    constexpr Planes kPlanes = planes_of(kFormat);
    if constexpr (kPlane < kPlanes.count) {
      constexpr int kStride = kPlanes.segments[kPlane].stride();
      constexpr int kPlaneBytes = kBlocks * kStride;
      constexpr int kGranule = kPlaneBytes % 16 == 0 ? 16 : kPlaneBytes % 8 == 0 ? 8 : 4;
      static_assert(kPlaneBytes % kGranule == 0);
      constexpr int kGranules = kPlaneBytes / kGranule;
      const int32_t begin = stage * kPlaneBytes;
      const int32_t there = num_blocks * kStride - begin;  // bytes of the row from here on
      const uint8_t* from = weight + plane_offset(kPlanes, kPlane, num_blocks) + begin;
      uint8_t* plane = to + plane_offset(kPlanes, kPlane, kBlocks);
#pragma unroll
      for (int base = 0; base < kRows * kGranules; base += 32) {
        const int i = base + lane, row = i / kGranules, at = i % kGranules * kGranule;
        if (row < kRows && at < there)
          copy_async<kGranule>(plane + row * pitch + at,
                               from + min(first + row, num_rows - 1) * row_bytes + at);
      }
      copy_planes<kRows, kPlane + 1>(
          weight, row_bytes, num_rows, num_blocks, first, stage, to, pitch, lane);
    }
  }
};

}  // namespace headwater::cuda
