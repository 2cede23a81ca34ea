#include "kernels/ops_host.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/host_buffer.h"

namespace headwater {

Buffer Ops::allocate_staging(int64_t bytes) { return allocate_host(bytes); }

void Ops::top_logits(Matrix logits, TopLogits* out) {
  for (int64_t i = 0; i < logits.rows; ++i)
    out[i] = headwater::top_logits({logits.f32_row(i), static_cast<size_t>(logits.cols)});
}

void Ops::draw_tokens(Matrix logits,
                      const TopLogits* tops,
                      const TokenDraw* draws,
                      int32_t* tokens,
                      int32_t* staged) {
  DrawScratch scratch;
  for (int64_t i = 0; i < logits.rows; ++i)
    tokens[i] = draw_token(logits.f32_row(i), tops[i], draws[i], logits.cols, scratch, OneThread());
  if (staged != nullptr) std::copy_n(tokens, logits.rows, staged);
}

void Ops::take_tokens(const int32_t* drawn, int32_t* ids, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0) ids[i] = std::max(drawn[-1 - ids[i]], 0);
}

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
