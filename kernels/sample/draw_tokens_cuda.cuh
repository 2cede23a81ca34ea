// Ops::draw_tokens and take_tokens on the GPU. Asynchronous on the stream. Engine thread.
#pragma once

#include "kernels/base/cuda.cuh"
#include "kernels/sample/token_draw.h"

namespace headwater::cuda {

// tops: of the same rows; staged: page-locked host memory, or null
void draw_tokens(Matrix logits,
                 const TopLogits* tops,
                 const TokenDraw* draws,
                 int32_t* tokens,
                 int32_t* staged,
                 const Stream& stream);
void take_tokens(const int32_t* drawn, int32_t* ids, int64_t count, const Stream& stream);

}  // namespace headwater::cuda
