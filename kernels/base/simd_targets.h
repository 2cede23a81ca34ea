// Include first in every file that uses Highway: which instruction sets are compiled.
// On x86: AVX-512 with VNNI (Ice Lake, Zen 4 and later), AVX2, and portable code for the rest.
#pragma once

#define HWY_WANT_AVX3_DL
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

#include <hwy/targets.h>
