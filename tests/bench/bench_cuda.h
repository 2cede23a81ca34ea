// What the parts of bench_cuda share: a clock around many calls, and random values on the device.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/ops.h"

namespace headwater {

inline constexpr int kRuns = 5;
inline constexpr int64_t kRotatedBytes = int64_t{1}
                                         << 30;  // of weights or keys: no cache holds them

inline double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Median of the runs, after one that warms up.
template <typename Body>
double median_seconds(Ops& ops, const Body& body) {
  std::vector<double> runs;
  for (int run = 0; run <= kRuns; ++run) {
    ops.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    body();
    ops.synchronize();
    if (run > 0) runs.push_back(seconds_since(begin));
  }
  std::sort(runs.begin(), runs.end());
  return runs[runs.size() / 2];
}

template <typename T>
Buffer to_device(Ops& ops, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  Buffer buffer = ops.allocate(bytes);
  ops.upload(buffer.data(), values.data(), bytes);
  return buffer;
}

inline std::vector<float> random_values(int64_t count) {
  std::mt19937 random(3);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random() % 2000) / 1000.0f - 1.0f;
  return values;
}

inline void fill_with_halves(Ops& ops, const Buffer& buffer) {
  std::vector<uint16_t> halves(size_t{1} << 22);
  std::mt19937 random(2);  // f16 of 0.0 .. 1.0, either sign
  for (uint16_t& half : halves) half = (random() & 0x8000) | (random() % 0x3C00);
  const auto bytes = static_cast<int64_t>(halves.size() * sizeof(uint16_t));
  for (int64_t at = 0; at < buffer.bytes(); at += bytes)
    ops.upload(buffer.data() + at, halves.data(), std::min(bytes, buffer.bytes() - at));
}

// Decode and prefill attention over per-head tables.
void bench_attention(Ops& ops);
// Decode attention of a pool full of long sequences under razor, by how its pages lie.
void bench_full_pool(Ops& ops);

}  // namespace headwater
