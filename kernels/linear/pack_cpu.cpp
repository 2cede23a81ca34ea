// Packing of weights into tiles of 16 output rows. The layouts, per tile (r = row in the tile):
//   F32 F16 BF16   per input k:   element [r]
//   Q8_0 Q4_0 Q4_1 per 32 inputs: f16 d[r], Q4_1: f16 m[r], quants
//   Q4_K           per 256:       f16 d[r], f16 dmin[r], then per 32: u8 scale[r], u8 min[r],
//   quants Q6_K           per 256:       f16 d[r], then per 32: i8 scale[2][r], quants
// Quants of 32 inputs are runs of 16 words of 32 bits, one per row; each half of a word has one
// input of several pairs, so that a shift and a mask leave the pair (2p, 2p + 1) in 16 bits each:
//   8 bits  8 runs: run n has w + 128 of the pairs 2n (low bytes of the halves) and 2n + 1
//   4 bits  4 runs: run n has the pairs 4n .. 4n + 3, the first in the lowest nibbles
//   6 bits  4 such runs of the low four bits, then 2 runs of the high two: run n has pairs 8n .. 8n
//   + 7
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/linear/linear_cpu.h"

namespace headwater::cpu {
namespace {

constexpr int kRun = 64;

// Where 32 unsigned quants of one row come from: value(k) for k < 32. Adds bits [shift, shift +
// bits) of them to zeroed runs.
template <typename Value>
void put_pairs(int bits, int shift, int row, const Value& value, uint8_t* out) {
  const int pairs_per_run = 16 / bits;
  for (int k = 0; k < kBlock; ++k) {
    const int pair = k / 2;
    const uint32_t quant = static_cast<uint32_t>(value(k)) >> shift & ((1u << bits) - 1);
    uint8_t* word = out + kRun * (pair / pairs_per_run) + 4 * row;
    uint32_t packed;
    std::memcpy(&packed, word, sizeof(packed));
    packed |= quant << (16 * (k % 2) + bits * (pair % pairs_per_run));
    std::memcpy(word, &packed, sizeof(packed));
  }
}

template <typename Value>
void put_8_bits(int row, const Value& value, uint8_t* out) {
  put_pairs(8, 0, row, value, out);
}

template <typename Value>
void put_4_bits(int row, const Value& value, uint8_t* out) {
  put_pairs(4, 0, row, value, out);
}

template <typename Value>
void put_6_bits(int row, const Value& value, uint8_t* out) {
  put_pairs(4, 0, row, value, out);
  put_pairs(2, 4, row, value, out + 4 * kRun);
}

void put_scalars(const uint8_t* source, int bytes, int row, int64_t cols, uint8_t* out) {
  for (int64_t k = 0; k < cols; ++k)
    std::memcpy(
        out + (k * kTileRows + row) * bytes, source + k * bytes, static_cast<size_t>(bytes));
}

void put_f16(const uint8_t* source, int row, uint8_t* out) {
  std::memcpy(out + 2 * row, source, 2);
}

void put_q8_0(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block, row, out);
  put_8_bits(
      row, [&](int k) { return block[2 + k] ^ 0x80; }, out + 32);
}

void put_q4_0(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block, row, out);
  const uint8_t* q = block + 2;
  put_4_bits(
      row, [&](int k) { return k < 16 ? q[k] & 15 : q[k - 16] >> 4; }, out + 32);
}

void put_q4_1(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block, row, out);
  put_f16(block + 2, row, out + 32);
  const uint8_t* q = block + 4;
  put_4_bits(
      row, [&](int k) { return k < 16 ? q[k] & 15 : q[k - 16] >> 4; }, out + 64);
}

void put_q4_k(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block, row, out);
  put_f16(block + 2, row, out + 32);
  const uint8_t* s = block + 4;
  for (int j = 0; j < 8; ++j) {
    uint8_t* sub = out + 64 + j * (32 + 4 * kRun);
    sub[row] = static_cast<uint8_t>(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    sub[16 + row] = static_cast<uint8_t>(j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4);
    const uint8_t* q = block + 16 + 32 * (j / 2);
    put_4_bits(
        row, [&](int k) { return j % 2 == 0 ? q[k] & 15 : q[k] >> 4; }, sub + 32);
  }
}

void put_q6_k(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block + 208, row, out);
  for (int j = 0; j < 8; ++j) {
    uint8_t* sub = out + 32 + j * (32 + 6 * kRun);
    sub[row] = block[192 + 2 * j];
    sub[16 + row] = block[192 + 2 * j + 1];
    const int half = j / 4;
    const int run = j % 4;
    const uint8_t* low = block + 64 * half + 32 * (run % 2);
    const uint8_t* high = block + 128 + 32 * half;
    const auto value = [&](int k) {
      return (run < 2 ? low[k] & 15 : low[k] >> 4) | (high[k] >> (2 * run) & 3) << 4;
    };
    put_6_bits(row, value, sub + 32);
  }
}

// Bytes of one packed block of 16 rows, and how one row's block is put there.
struct BlockPacking {
  int64_t bytes;
  void (*put)(const uint8_t* block, int row, uint8_t* out);
};

BlockPacking block_packing(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ8_0:
      return {32 + 8 * kRun, put_q8_0};
    case QuantFormat::kQ4_0:
      return {32 + 4 * kRun, put_q4_0};
    case QuantFormat::kQ4_1:
      return {64 + 4 * kRun, put_q4_1};
    case QuantFormat::kQ4_K:
      return {64 + 8 * (32 + 4 * kRun), put_q4_k};
    case QuantFormat::kQ6_K:
      return {32 + 8 * (32 + 6 * kRun), put_q6_k};
    default:
      return {0, nullptr};
  }
}

}  // namespace

int64_t packed_tile_bytes(QuantFormat format, int64_t cols) {
  const QuantTraits& traits = quant_traits(format);
  HW_CHECK(cols % traits.block_elements == 0, "a row is not whole blocks, cols", cols);
  const BlockPacking packing = block_packing(format);
  if (packing.put == nullptr) return cols * kTileRows * traits.block_bytes;
  return cols / traits.block_elements * packing.bytes;
}

void pack_tile(const WeightView& source, int64_t tile, uint8_t* out) {
  const QuantTraits& traits = quant_traits(source.format);
  const BlockPacking packing = block_packing(source.format);
  const int64_t stride = row_bytes(source.format, source.cols);
  for (int row = 0; row < kTileRows; ++row) {
    const int64_t source_row = tile * kTileRows + row;
    if (source_row >= source.rows) return;
    const auto* bytes = static_cast<const uint8_t*>(source.data) + source_row * stride;
    if (packing.put == nullptr) {
      put_scalars(bytes, traits.block_bytes, row, source.cols, out);
    } else {
      for (int64_t block = 0; block < source.cols / traits.block_elements; ++block)
        packing.put(bytes + block * traits.block_bytes, row, out + block * packing.bytes);
    }
  }
}

}  // namespace headwater::cpu
