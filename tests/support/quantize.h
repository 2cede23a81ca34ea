// Reference quantisers for tests: slow, obviously right, not made for quality.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/quant/quant_format.h"

namespace headwater::testing {

// Blocks of F32, F16, BF16 or a format of 32 elements that decode close to the values.
std::string quantize(QuantFormat format, std::span<const float> values);

// Blocks of a format of 256 elements with random codes and scales whose decoded values have zero
// mean and about the given standard deviation.
std::string random_k_blocks(QuantFormat format,
                            int64_t num_elements,
                            float deviation,
                            uint64_t seed);

}  // namespace headwater::testing
