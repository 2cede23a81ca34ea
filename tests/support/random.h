// Random: a small generator whose sequence is the same everywhere (SplitMix64).
#pragma once

#include <cstdint>
#include <vector>

namespace headwater::testing {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // In [0, bound).
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(bound));
  }
  // In [-1, 1).
  float unit() { return static_cast<float>(static_cast<int64_t>(next()) >> 40) * 0x1p-23f; }
  // Uniform with zero mean and the given standard deviation.
  std::vector<float> values(int64_t count, float deviation) {
    constexpr float kSqrt3 = 1.7320508f;
    std::vector<float> out(static_cast<size_t>(count));
    for (float& value : out) value = unit() * kSqrt3 * deviation;
    return out;
  }

 private:
  uint64_t state_;
};

}  // namespace headwater::testing
