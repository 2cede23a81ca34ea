// Reference quantisers for tests: slow, obviously right, not made for quality.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/quant/quant_format.h"

namespace headwater::testing {

// Blocks of F32, F16, BF16, Q8_0, Q4_0 or Q4_1 that decode close to the values.
std::string quantize(QuantFormat format, std::span<const float> values);

// Blocks of Q4_K or Q6_K with random codes and scales whose decoded values have zero mean and
// about the given standard deviation.
std::string random_k_blocks(QuantFormat format,
                            int64_t num_elements,
                            float deviation,
                            uint64_t seed);

}  // namespace headwater::testing
