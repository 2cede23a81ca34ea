// Rotary position embedding as data. Pair i of a head is rotated by position * inv_freq[i]:
// (a, b) -> (a cos - b sin, a sin + b cos); dims >= rotary_dim pass through.
// All scaling rules (linear, llama3, yarn) are folded into inv_freq and magnitude at load.
#pragma once

#include <cstdint>
#include <vector>

namespace headwater {

enum class RopePairing : uint8_t {
  kAdjacent,  // pair i = (x[2i], x[2i+1]): GGUF files of arch llama (llama.cpp: NORM)
  kHalves,    // pair i = (x[i], x[i + rotary_dim/2]): Hugging Face (llama.cpp: NEOX)
};

struct RopeSpec {
  RopePairing pairing = RopePairing::kHalves;
  int32_t rotary_dim = 0;
  float magnitude = 1.0f;        // cos and sin are multiplied by it
  std::vector<double> inv_freq;  // [rotary_dim / 2], radians per position
  bool operator==(const RopeSpec&) const = default;
};

}  // namespace headwater
