// Texts in which passkeys are hidden, asked for at the end: what DuoAttention optimises its gates
// on (arXiv 2410.10819, section 2.3: ten passkeys of 32 words in a book). Here the book is made of
// invented sentences, so nothing needs to be downloaded, and the sizes shrink with the context:
// passkeys and answers together take at most half of it.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/text/tokenizer.h"

namespace headwater {

// A sequence, and what of it counts.
struct CalibrationSample {
  std::vector<int32_t> tokens;
  std::vector<int32_t> rows;  // ascending; the tokens behind these rows are answers
};

struct PasskeyOptions {
  int32_t length = 2048;  // tokens, at most
  int32_t num_passkeys = 10;
  int32_t words = 32;  // of one passkey
  uint64_t seed = 1;
};

// Throws ConfigError if not even one passkey of four words fits.
CalibrationSample make_passkeys(const Tokenizer& tokenizer, const PasskeyOptions& options);

}  // namespace headwater
