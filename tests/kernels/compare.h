// How far a result is from the oracle's: largest difference, normalised mean squared error, where.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <vector>

#include "kernels/base/simd_targets.h"

namespace headwater::testing {

struct Difference {
  double max_abs = 0;
  double nmse = 0;  // sum of squared differences / sum of squares of the oracle; NaN counts as 1e30
  int64_t worst = -1;
};

// min_squares: what the oracle's squares count at least, where they may be near 0 by chance.
inline Difference difference(const std::vector<float>& got,
                             const std::vector<float>& oracle,
                             double min_squares = 1e-30) {
  Difference result;
  double squares = 0;
  double errors = 0;
  for (size_t i = 0; i < oracle.size(); ++i) {
    double error = std::abs(double{got[i]} - oracle[i]);
    if (!(error < 1e30)) error = 1e30;
    if (error > result.max_abs) {
      result.max_abs = error;
      result.worst = static_cast<int64_t>(i);
    }
    errors += error * error;
    squares += double{oracle[i]} * oracle[i];
  }
  result.nmse = errors / std::max(squares, min_squares);
  return result;
}

inline std::ostream& operator<<(std::ostream& out, const Difference& d) {
  return out << "max abs " << d.max_abs << " at " << d.worst << ", NMSE " << d.nmse;
}

// Calls body() once for every compiled instruction set this machine has, best first.
template <typename Body>
void for_each_target(const Body& body) {
  const int64_t wanted[] = {HWY_AVX3_DL, HWY_AVX2, HWY_NEON, HWY_SCALAR};
  const int64_t supported = hwy::SupportedTargets() | HWY_SCALAR;
  for (const int64_t target : wanted) {
    if ((supported & target) == 0) continue;
    hwy::GetChosenTarget().Update(target);
    body(target);
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace headwater::testing
