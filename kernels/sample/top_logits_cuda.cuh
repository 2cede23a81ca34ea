// Ops::top_logits on the GPU. Asynchronous on the stream. Engine thread.
#pragma once

#include "kernels/base/cuda.cuh"
#include "kernels/sample/top_logits.h"

namespace headwater::cuda {

void top_logits(Matrix logits, TopLogits* out, const Stream& stream);

}  // namespace headwater::cuda
