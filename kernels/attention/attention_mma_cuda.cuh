// The kernel on tensor cores, where attention_cuda.cu prefers it. Engine thread.
#pragma once

#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/attention_state_cuda.cuh"

namespace headwater::cuda {

constexpr int64_t kMaxSplits = 64;  // of the keys of one tile of queries

// Pages of `format`, head sizes 32, 64, 80, 96, 128 and 256, no selection; otherwise false, and
// nothing was launched. Where it leaves partial results, a.partials and a.splits say so.
bool attention_mma(Attention& a,
                   DType format,
                   const AttentionScratch& scratch,
                   const Stream& stream);

}  // namespace headwater::cuda
