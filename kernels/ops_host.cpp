#include "kernels/ops_host.h"

#include <algorithm>
#include <cstring>

namespace headwater {

void gather_logit_rows_host(Matrix x, const StepView& step, Matrix out) {
  for (int32_t i = 0; i < step.num_logit_rows; ++i)
    std::copy_n(x.f32_row(step.logit_rows[i]), x.cols, out.f32_row(i));
}

void copy_pages_host(std::byte* arena,
                     int64_t page_bytes,
                     std::span<const PageId> from,
                     std::span<const PageId> to) {
  for (size_t i = 0; i < from.size(); ++i)
    std::memcpy(arena + to[i] * kPageGranuleBytes,
                arena + from[i] * kPageGranuleBytes,
                static_cast<size_t>(page_bytes));
}

}  // namespace headwater
