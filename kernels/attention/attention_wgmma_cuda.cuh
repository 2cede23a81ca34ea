// Prefill on the tensor cores of Hopper (sm_90a). Engine thread.
#pragma once

#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/attention_state_cuda.cuh"

namespace headwater::cuda {

// Where sm_90a's code runs and sequences bring several rows and fill half of the device: pages
// of `format`, head sizes 64 and 128, no selection, no softcap; otherwise false, and nothing was
// launched. Where it leaves partial results, a.partials and a.splits say so.
bool attention_wgmma(Attention& a,
                     DType format,
                     const AttentionScratch& scratch,
                     const Stream& stream);

}  // namespace headwater::cuda
