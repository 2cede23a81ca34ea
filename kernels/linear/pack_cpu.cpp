// Packing of weights into tiles of 16 output rows. The layouts, per tile (r = row in the tile):
//   F32 F16 BF16        per input k:   element [r]
//   Q8_0 Q4_0 Q5_0      per 32 inputs: f16 d[r], quants
//   Q4_1 Q5_1           per 32:        f16 d[r], f16 m[r], quants
//   IQ4_NL              per 32:        f16 d[r], quants (indices of kNl4Values)
//   Q4_K Q5_K           per 256: f16 d[r], f16 dmin[r], then per 32: u8 scale[r], u8 min[r], quants
//   Q2_K                per 256: f16 d[r], f16 dmin[r], then per 32: u8 s[2][r], quants
//   Q3_K Q6_K           per 256: f16 d[r], then per 32: i8 scale[2][r], quants
//   IQ4_XS              per 256: f16 d[r], then per 32: i8 scale[r], quants (as IQ4_NL)
// Quants of 32 inputs are runs of 16 words of 32 bits, one per row; each half of a word has one
// input of several pairs, so that a shift and a mask leave the pair (2p, 2p + 1) in 16 bits each:
//   8 bits  8 runs: run n has w + 128 of the pairs 2n (low bytes of the halves) and 2n + 1
//   4 bits  4 runs: run n has the pairs 4n .. 4n + 3, the first in the lowest nibbles
//   2 bits  2 runs: run n has the pairs 8n .. 8n + 7;  1 bit: one run of all sixteen
//   6, 5 and 3 bits: the runs of the low 4, 4 and 2 bits, then those of the 2, 1 and 1 bits above
#include <bit>
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

// All bits of 32 quants: kBits runs.
template <int kBits, typename Value>
void put_quants(int row, const Value& value, uint8_t* out) {
  constexpr int kLowBits = static_cast<int>(std::bit_floor(unsigned{kBits}));
  put_pairs(kLowBits, 0, row, value, out);
  if constexpr (kLowBits < kBits)
    put_pairs(kBits - kLowBits, kLowBits, row, value, out + kLowBits * kRun);
}

void put_scalars(const uint8_t* source, int bytes, int row, int64_t cols, uint8_t* out) {
  for (int64_t k = 0; k < cols; ++k)
    std::memcpy(
        out + (k * kTileRows + row) * bytes, source + k * bytes, static_cast<size_t>(bytes));
}

void put_f16(const uint8_t* source, int row, uint8_t* out) {
  std::memcpy(out + 2 * row, source, 2);
}

int nibble(const uint8_t* q, int k) { return k < 16 ? q[k] & 15 : q[k - 16] >> 4; }

void put_q8_0(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block, row, out);
  put_quants<8>(
      row, [&](int k) { return block[2 + k] ^ 0x80; }, out + 32);
}

// Q4_0, Q4_1 and IQ4_NL: kScales numbers of 16 bits, 32 nibbles.
template <int kScales>
void put_nibbles(const uint8_t* block, int row, uint8_t* out) {
  for (int i = 0; i < kScales; ++i) put_f16(block + 2 * i, row, out + 32 * i);
  put_quants<4>(
      row, [&](int k) { return nibble(block + 2 * kScales, k); }, out + 32 * kScales);
}

// Q5_0 and Q5_1: kScales numbers of 16 bits, the fifth bits as one word, 32 nibbles.
template <int kScales>
void put_5_bits(const uint8_t* block, int row, uint8_t* out) {
  for (int i = 0; i < kScales; ++i) put_f16(block + 2 * i, row, out + 32 * i);
  uint32_t high;
  std::memcpy(&high, block + 2 * kScales, sizeof(high));
  const auto value = [&](int k) {
    return nibble(block + 2 * kScales + 4, k) | static_cast<int>(high >> k & 1) << 4;
  };
  put_quants<5>(row, value, out + 32 * kScales);
}

// Q4_K and Q5_K.
template <int kBits>
void put_scale_min_blocks(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block, row, out);
  put_f16(block + 2, row, out + 32);
  const uint8_t* s = block + 4;
  const uint8_t* high = block + 16;
  const uint8_t* low = kBits == 5 ? high + 32 : high;
  for (int j = 0; j < 8; ++j) {
    uint8_t* sub = out + 64 + j * (32 + kBits * kRun);
    sub[row] = static_cast<uint8_t>(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    sub[16 + row] = static_cast<uint8_t>(j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4);
    const uint8_t* q = low + 32 * (j / 2);
    const auto value = [&](int k) {
      const int nibble = j % 2 == 0 ? q[k] & 15 : q[k] >> 4;
      return kBits == 5 ? nibble | (high[k] >> j & 1) << 4 : nibble;
    };
    put_quants<kBits>(row, value, sub + 32);
  }
}

void put_q2_k(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block + 80, row, out);
  put_f16(block + 82, row, out + 32);
  for (int j = 0; j < 8; ++j) {
    uint8_t* sub = out + 64 + j * (32 + 2 * kRun);
    sub[row] = block[2 * j];
    sub[16 + row] = block[2 * j + 1];
    const uint8_t* q = block + 16 + 32 * (j / 4);
    put_quants<2>(
        row, [&](int k) { return q[k] >> (2 * (j % 4)) & 3; }, sub + 32);
  }
}

void put_q3_k(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block + 108, row, out);
  const uint8_t* s = block + 96;
  for (int j = 0; j < 8; ++j) {
    uint8_t* sub = out + 32 + j * (32 + 3 * kRun);
    for (int half = 0; half < 2; ++half) {
      const int i = 2 * j + half;
      const int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4;
      const int scale = (low | (s[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32;
      sub[16 * half + row] = static_cast<uint8_t>(scale);
    }
    const uint8_t* q = block + 32 + 32 * (j / 4);
    const auto value = [&](int k) {
      return (q[k] >> (2 * (j % 4)) & 3) | (block[k] >> j & 1) << 2;
    };
    put_quants<3>(row, value, sub + 32);
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
    put_quants<6>(row, value, sub + 32);
  }
}

void put_iq4_xs(const uint8_t* block, int row, uint8_t* out) {
  put_f16(block, row, out);
  uint16_t high;
  std::memcpy(&high, block + 2, sizeof(high));
  for (int j = 0; j < 8; ++j) {
    uint8_t* sub = out + 32 + j * (16 + 4 * kRun);
    const int scale = (block[4 + j / 2] >> (4 * (j % 2)) & 15) | (high >> (2 * j) & 3) << 4;
    sub[row] = static_cast<uint8_t>(scale - 32);
    put_quants<4>(
        row, [&](int k) { return nibble(block + 8 + 16 * j, k); }, sub + 16);
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
    case QuantFormat::kIQ4_NL:
      return {32 + 4 * kRun, put_nibbles<1>};
    case QuantFormat::kQ4_1:
      return {64 + 4 * kRun, put_nibbles<2>};
    case QuantFormat::kQ5_0:
      return {32 + 5 * kRun, put_5_bits<1>};
    case QuantFormat::kQ5_1:
      return {64 + 5 * kRun, put_5_bits<2>};
    case QuantFormat::kQ2_K:
      return {64 + 8 * (32 + 2 * kRun), put_q2_k};
    case QuantFormat::kQ3_K:
      return {32 + 8 * (32 + 3 * kRun), put_q3_k};
    case QuantFormat::kQ4_K:
      return {64 + 8 * (32 + 4 * kRun), put_scale_min_blocks<4>};
    case QuantFormat::kQ5_K:
      return {64 + 8 * (32 + 5 * kRun), put_scale_min_blocks<5>};
    case QuantFormat::kQ6_K:
      return {32 + 8 * (32 + 6 * kRun), put_q6_k};
    case QuantFormat::kIQ4_XS:
      return {32 + 8 * (16 + 4 * kRun), put_iq4_xs};
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
