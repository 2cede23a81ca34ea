// Prefill on the tensor cores of Hopper (sm_90a). Engine thread.
#pragma once

#include "kernels/attention/attention_cuda.cuh"
#include "kernels/attention/attention_state_cuda.cuh"

namespace headwater::cuda {

// Where sm_90a's code runs and sequences bring several rows and fill half of the device: pages
// of `format`, head sizes 64 and 128, no selection, no softcap; otherwise false, and nothing was
// launched.
bool attention_wgmma(const Attention& a,
                     DType format,
                     int32_t num_processors,
                     const Stream& stream);

}  // namespace headwater::cuda
