// Weights as they lie on the GPU: the bytes of the file, each row's blocks taken apart into planes,
// so that sixteen bytes are read at once from a boundary of sixteen (formats without fast kernels
// stay whole). A plane holds one segment of every block of a row, in order. Q8_0, 34 bytes a block:
//
//   file   d q d q d q ...          (d: 2 bytes, q: 32)
//   GPU    q q q ... | d d d ...    (each | at a multiple of 16 bytes, and the next row too)
#pragma once

#include <array>
#include <cstdint>

#include "kernels/quant/quant_format.h"

namespace headwater::cuda {

constexpr int kMaxPlanes = 4;

struct Segment {  // of a block in the file
  int32_t offset = 0, bytes = 0;
};

struct Planes {
  std::array<Segment, kMaxPlanes> segments{};
  int32_t count = 1;
};

constexpr Planes planes_of(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ8_0:
      return {{{{2, 32}, {0, 2}}}, 2};
    case QuantFormat::kQ4_0:
      return {{{{2, 16}, {0, 2}}}, 2};
    case QuantFormat::kQ4_1:
      return {{{{4, 16}, {0, 4}}}, 2};
    case QuantFormat::kQ6_K:
      return {{{{0, 128}, {128, 64}, {192, 16}, {208, 2}}}, 4};
    case QuantFormat::kQ4_K:
      return {{{{0, 144}}}, 1};
    case QuantFormat::kQ5_0:
      return {{{{0, 22}}}, 1};
    case QuantFormat::kQ5_1:
      return {{{{0, 24}}}, 1};
    case QuantFormat::kQ2_K:
      return {{{{0, 84}}}, 1};
    case QuantFormat::kQ3_K:
      return {{{{0, 110}}}, 1};
    case QuantFormat::kQ5_K:
      return {{{{0, 176}}}, 1};
    case QuantFormat::kIQ4_NL:
      return {{{{0, 18}}}, 1};
    case QuantFormat::kIQ4_XS:
      return {{{{0, 136}}}, 1};
    case QuantFormat::kF32:
      return {{{{0, 4}}}, 1};
    case QuantFormat::kF16:
    case QuantFormat::kBF16:
      return {{{{0, 2}}}, 1};
  }
  return {{}, 0};  // not on the GPU
}

constexpr int64_t round16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Offset of a plane in a row of `blocks` blocks; of plane count: the bytes of the row.
constexpr int64_t plane_offset(const Planes& planes, int plane, int64_t blocks) {
  int64_t offset = 0;
  for (int i = 0; i < plane; ++i) offset += round16(blocks * planes.segments[i].bytes);
  return offset;
}

inline int64_t device_row_bytes(QuantFormat format, int64_t cols) {
  const Planes planes = planes_of(format);
  return plane_offset(planes, planes.count, cols / quant_traits(format).block_elements);
}

}  // namespace headwater::cuda
