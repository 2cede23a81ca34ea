// Rotary positions and the append to pages, contracts in kernels/ops.h. Asynchronous on the stream;
// q, k and v are of one type, f32 or f16.
#pragma once

#include <cstdint>

#include "kernels/base/cuda.cuh"
#include "kernels/ops.h"

namespace headwater::cuda {

constexpr int kMaxRotaryDim = 256;

void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out, const Stream& stream);
void rope_append_kv(int32_t layer,
                    const HeadShape& heads,
                    const RopeSpec& rope,
                    const StepView& step,
                    Matrix angles,
                    Matrix q,
                    Matrix k,
                    Matrix v,
                    const Stream& stream);

}  // namespace headwater::cuda
