// The kernel on tensor cores, where attention_cuda.cu prefers it. Engine thread.
#pragma once

#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/attention_state_cuda.cuh"

namespace headwater::cuda {

constexpr int64_t kMaxSplits =
    64;  // of the keys of one tile of queries; merge_splits() takes so many

// Pages of `format`, head sizes 32, 64, 80, 96, 128 and 256, no selection; otherwise false, and
// nothing was launched.
bool attention_mma(const Attention& a,
                   DType format,
                   const AttentionScratch& scratch,
                   const Stream& stream);

}  // namespace headwater::cuda
