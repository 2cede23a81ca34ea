#include "engine/schedule/prefill_pacer.h"

#include <algorithm>

namespace headwater {
namespace {

// Follows within about five steps, and forgets one odd step as quickly.
void follow(double& average, double value) {
  average = average == 0 ? value : average + 0.2 * (value - average);
}

}  // namespace

PrefillPacer::PrefillPacer(double stretch, int32_t max_decodes, int32_t max_rows)
    : stretch_(stretch),
      max_rows_(max_rows),
      decode_seconds_(static_cast<size_t>(max_decodes) + 1, 0.0) {}

double PrefillPacer::decode_seconds(int32_t num_decodes) const {
  for (int32_t n = num_decodes; n > 0; --n)
    if (decode_seconds_[static_cast<size_t>(n)] > 0) return decode_seconds_[static_cast<size_t>(n)];
  return 0;
}

int32_t PrefillPacer::rows(int32_t num_decodes) const {
  if (num_decodes == 0) return max_rows_;
  const double spare = (stretch_ - 1) * decode_seconds(num_decodes);
  if (spare <= 0 || row_seconds_ == 0) return std::min(kMinRows, max_rows_);
  const auto affordable = static_cast<int32_t>(std::min(spare / row_seconds_, 1e6));
  return std::clamp(affordable / kMinRows * kMinRows, std::min(kMinRows, max_rows_), max_rows_);
}

void PrefillPacer::observe(int32_t num_decodes, int32_t num_prefill_rows, double seconds) {
  if (num_prefill_rows == 0) {
    if (num_decodes > 0) follow(decode_seconds_[static_cast<size_t>(num_decodes)], seconds);
    return;
  }
  const double rest = std::max(seconds - decode_seconds(num_decodes), 0.0);
  follow(row_seconds_, rest / num_prefill_rows);
}

}  // namespace headwater
