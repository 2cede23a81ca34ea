#include "kernels/sample/top_logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace headwater {

TopLogits top_logits(std::span<const float> row) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  constexpr float kMasked = -std::numeric_limits<float>::infinity();
  const auto value = [&](int32_t id) {
    const float x = row[static_cast<size_t>(id)];
    return std::isnan(x) ? -kLargest : std::min(x, kLargest);
  };
  std::vector<int32_t> ids(row.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::erase_if(ids, [&](int32_t id) { return value(id) == kMasked; });
  const auto count = std::min<int64_t>(kTopLogits, std::ssize(ids));
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [&](int32_t a, int32_t b) {
    return value(a) != value(b) ? value(a) > value(b) : a < b;
  });
  TopLogits top;
  top.count = static_cast<int32_t>(count);
  for (int32_t i = 0; i < top.count; ++i) {
    top.ids[i] = ids[static_cast<size_t>(i)];
    top.logits[i] = value(top.ids[i]);
  }
  double sum = 0;
  for (const int32_t id : ids) sum += std::exp(double{value(id)} - double{top.logits[0]});
  top.log_sum_exp = count == 0 ? kMasked : static_cast<float>(top.logits[0] + std::log(sum));
  return top;
}

}  // namespace headwater
