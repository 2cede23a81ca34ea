// IntRange: the values an integer field of a file may have, both ends included.
#pragma once

#include <cstdint>
#include <limits>

namespace headwater {

struct IntRange {
  int64_t min = 0;
  int64_t max = std::numeric_limits<int32_t>::max();
};

}  // namespace headwater
