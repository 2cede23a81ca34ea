// Pages and tables moved on the GPU, contracts in kernels/ops.h. All pointers are device memory.
// Asynchronous on the stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/paged_kv.h"
#include "kernels/base/cuda.cuh"

namespace headwater::cuda {

// Whether this build has code that the device runs.
bool has_kernels_for_device();

void copy_pages(std::byte* arena,
                int64_t page_bytes,
                const PageId* from,
                const PageId* to,
                int64_t count,
                const Stream& stream);
void write_table(int32_t* table, const TableEntry* entries, int64_t count, const Stream& stream);

}  // namespace headwater::cuda
