// Weights as they lie on the GPU: the bytes of the file, each row's blocks taken apart into planes,
// so that sixteen bytes are read at once from a boundary of sixteen. A plane holds one segment of
// every block of a row, in order. Q8_0, 34 bytes a block:
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
  int32_t padding = 0;  // behind it in the plane: 256 elements lie at a multiple of four bytes
  constexpr int32_t stride() const { return bytes + padding; }
};

struct Planes {
  std::array<Segment, kMaxPlanes> segments{};
  int32_t count = 1;
  int32_t elements = 1;  // of a block
};

constexpr Planes planes_of(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ8_0:
      return {{{{2, 32}, {0, 2}}}, 2, 32};
    case QuantFormat::kQ4_0:
    case QuantFormat::kIQ4_NL:
      return {{{{2, 16}, {0, 2}}}, 2, 32};
    case QuantFormat::kQ4_1:
      return {{{{4, 16}, {0, 4}}}, 2, 32};
    case QuantFormat::kQ5_0:
      return {{{{6, 16}, {2, 4}, {0, 2}}}, 3, 32};
    case QuantFormat::kQ5_1:
      return {{{{8, 16}, {0, 8}}}, 2, 32};
    case QuantFormat::kQ2_K:
      return {{{{16, 64}, {0, 16}, {80, 4}}}, 3, 256};
    case QuantFormat::kQ3_K:
      return {{{{32, 64}, {0, 32}, {96, 12}, {108, 2, 2}}}, 4, 256};
    case QuantFormat::kQ4_K:
      return {{{{0, 144}}}, 1, 256};
    case QuantFormat::kQ5_K:
      return {{{{0, 176}}}, 1, 256};
    case QuantFormat::kQ6_K:
      return {{{{0, 128}, {128, 64}, {192, 16}, {208, 2, 2}}}, 4, 256};
    case QuantFormat::kIQ4_XS:
      return {{{{8, 128}, {0, 8}}}, 2, 256};
    case QuantFormat::kF32:
      return {{{{0, 4}}}, 1, 1};
    case QuantFormat::kF16:
    case QuantFormat::kBF16:
      return {{{{0, 2}}}, 1, 1};
  }
  return {{}, 0, 1};  // not on the GPU
}

constexpr int64_t round16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Offset of a plane in a row of `blocks` blocks; of plane count: the bytes of the row.
constexpr int64_t plane_offset(const Planes& planes, int plane, int64_t blocks) {
  int64_t offset = 0;
  for (int i = 0; i < plane; ++i) offset += round16(blocks * planes.segments[i].stride());
  return offset;
}

constexpr int64_t device_row_bytes(QuantFormat format, int64_t cols) {
  const Planes planes = planes_of(format);
  return plane_offset(planes, planes.count, cols / planes.elements);
}

}  // namespace headwater::cuda
