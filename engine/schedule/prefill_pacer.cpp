#include "engine/schedule/prefill_pacer.h"

#include <algorithm>

namespace headwater {
namespace {

constexpr double kMemory = 0.95;  // of a step's weight in the next
constexpr double kSpread = 0.15;  // of the rows seen, over their mean, that shows a line

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
  const int32_t min_rows = std::min(kMinRows, max_rows_);
  if (num_decodes == 0) return max_rows_;
  const double decode = decode_seconds(num_decodes);
  if (decode == 0) return 0;  // this step tells
  const double spare = (stretch_ - 1) * decode;
  if (spare <= 0 || seen_.weight == 0) return min_rows;
  // The straight line through what was seen.
  const double mean_rows = seen_.rows / seen_.weight;
  const double mean_seconds = seen_.seconds / seen_.weight;
  const double variance = seen_.rows_rows / seen_.weight - mean_rows * mean_rows;
  const double covariance = seen_.rows_seconds / seen_.weight - mean_rows * mean_seconds;
  const double through_zero = mean_seconds / mean_rows;
  // A line that falls: rows cost less than the noise.
  const double slope = std::clamp(covariance / std::max(variance, 1e-9), 0.0, through_zero);
  const double any = mean_seconds - slope * mean_rows;
  double rows = 2.0 * seen_.latest + kMinRows;  // no farther from what was seen
  if (variance < kSpread * kSpread * mean_rows * mean_rows) {
    // No line to see: more rows if they fit for certain, else now and then half as many.
    if (2 * mean_seconds > spare) rows = std::max(mean_rows, 1.0 * kMinRows) / 2;
  } else {
    const double budget = std::max(spare - any, any);
    if (budget < slope * rows) rows = budget / slope;
    rows = std::max(rows, 1.0 * kMinRows);
  }
  const auto whole = static_cast<int32_t>(std::min<double>(rows, max_rows_));
  return whole < kMinRows ? whole : whole / kMinRows * kMinRows;
}

void PrefillPacer::observe(int32_t num_decodes, int32_t num_prefill_rows, double seconds) {
  if (num_prefill_rows == 0) {
    if (num_decodes > 0) follow(decode_seconds_[static_cast<size_t>(num_decodes)], seconds);
    return;
  }
  if (num_decodes == 0) return;
  const double rows = num_prefill_rows;
  const double rest = std::max(seconds - decode_seconds(num_decodes), 0.0);
  const double weight = 1 / (rows * rows);
  const auto add = [&](double& sum, double value) { sum = kMemory * sum + weight * value; };
  add(seen_.weight, 1);
  seen_.latest = num_prefill_rows;
  add(seen_.rows, rows);
  add(seen_.seconds, rest);
  add(seen_.rows_rows, rows * rows);
  add(seen_.rows_seconds, rows * rest);
}

}  // namespace headwater
