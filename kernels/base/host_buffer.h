// Host memory for buffers: zeroed, page-aligned, and resident only where it was touched, so a KV
// pool costs nothing before it is used.
#pragma once

#include <cstdint>

#include "kernels/base/tensor.h"

namespace headwater {

// Throws std::bad_alloc.
Buffer allocate_host(int64_t bytes);

}  // namespace headwater
