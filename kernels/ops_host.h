// What every back end whose memory is the host's does alike. Contracts: ops.h. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/ops.h"

namespace headwater {

// As Ops::gather_logit_rows.
void gather_logit_rows_host(Matrix x, const StepView& step, Matrix out);
// As Ops::copy_pages; page_bytes of each page.
void copy_pages_host(std::byte* arena,
                     int64_t page_bytes,
                     std::span<const PageId> from,
                     std::span<const PageId> to);

}  // namespace headwater
