// Attention over pages on the GPU, and the sums of what windows drop; contracts in kernels/ops.h.
// Asynchronous on the stream; q and out are f32 or f16, pages of any DType. Engine thread.
//
// Three kernels. The general one, fp32, is for every page format, head size and selection, and the
// only one in deterministic mode; those on tensor cores (attention_mma_cuda.cu, and for prefill on
// Hopper attention_wgmma_cuda.cu) are for the rest.
//
// In the general one keys are taken in segments of kSegmentTokens positions, aligned to position 0.
// Each has its own softmax; segments are merged in the order of positions, folded and virtual
// tokens last. So the bits of a row do not depend on who computed its segments: one block in a row,
// or many whose partial results a second kernel merges.
#pragma once

#include <cstdint>

#include "kernels/base/cuda.cuh"
#include "kernels/ops.h"

namespace headwater::cuda {

constexpr int32_t kMaxHeadDim = 256;
constexpr int32_t kSegmentTokens = 256;  // of the general kernel's splits
constexpr int32_t kMostLists = 1 << 14;  // of keys that are split, in one launch

struct AttentionScratch {
  Buffer partials;
  int32_t max_segments = 0;    // of the longest sequence; 0: not known, nothing is split
  int32_t num_processors = 0;  // of the device
  bool deterministic = false;  // not on tensor cores
  Buffer arrived;              // zeros, [kMostLists] int32_t
};

AttentionScratch attention_scratch(int32_t max_tokens,
                                   int32_t num_processors,
                                   bool deterministic,
                                   const Stream& stream);

void attention(const AttentionArgs& args,
               const StepView& step,
               const AttentionScratch& scratch,
               const Stream& stream);

void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step, const Stream& stream);

}  // namespace headwater::cuda
