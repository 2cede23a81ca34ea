// The CPU's matrix product on weights as stored: packed once at load, dotted as integers.
//
// A tile is 16 output rows side by side: lane = output row, blocks of inputs in k order. Each
// output element is one running sum over its blocks, first to last, whatever the number of
// activation rows, of threads or the instruction set: the bits of a row depend on that row only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/tensor.h"
#include "kernels/base/thread_pool.h"
#include "kernels/ops.h"
#include "kernels/quant/quant_format.h"

namespace headwater::cpu {

constexpr int kTileRows = 16;
constexpr int kBlock = 32;  // inputs that share one activation scale

// 32 activations as 14-bit integers: x = d * q. Multiplied as 16-bit pairs; with 14 bits the sums
// of every format fit 32, and rounding is 64 times finer than with 8.
struct alignas(32) ActivationBlock {
  int16_t q[kBlock];
  float d;
  float d_sum;              // d * sum of q, for formats with a minimum
  int32_t minus_128_sum;    // what an unsigned weight stored as w + 128 adds too much
  int32_t minus_8_sum;      // ... w + 8
  int32_t minus_32_sum[2];  // ... w + 32, for each half of the block
  int32_t minus_4_sum[2];   // ... w + 4
};
static_assert(sizeof(ActivationBlock) == 96);

// One fused part: rows padded to whole tiles (the padding multiplies to zero and is not stored).
struct PackedPart {
  WeightView source;
  int64_t num_tiles = 0;
  int64_t tile_bytes = 0;
  int64_t first_tile = 0;  // counted over the weight's parts
  int64_t first_col = 0;   // of the output
  Buffer data;

  const uint8_t* tile(int64_t idx) const { return data.as<uint8_t>() + idx * tile_bytes; }
};

struct CpuWeight final : Weight {
  std::vector<PackedPart> parts;
  int64_t num_tiles = 0;
};

// One task of a product: tiles of one part times activation rows.
struct TileRange {
  const PackedPart* part = nullptr;
  int64_t first_tile = 0;
  int64_t end_tile = 0;
  int64_t first_row = 0;
  int64_t end_row = 0;
};

// Bytes of one tile of this format with cols inputs.
int64_t packed_tile_bytes(QuantFormat format, int64_t cols);
// Packs output rows [16 * tile, 16 * tile + 16) of source.
void pack_tile(const WeightView& source, int64_t tile, uint8_t* out);

// Activations of one linear call as integers; grows, never shrinks. Engine thread only.
class ActivationScratch {
 public:
  ActivationBlock* reserve(int64_t blocks);

 private:
  std::vector<ActivationBlock> blocks_;
};

void linear(const CpuWeight& weight,
            Matrix x,
            Matrix out,
            LinearMode mode,
            ThreadPool& pool,
            ActivationScratch& scratch);

}  // namespace headwater::cpu
