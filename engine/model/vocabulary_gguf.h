// The tokenizer.ggml.* metadata of a GGUF file as a Vocabulary.
#pragma once

#include <vector>

#include "engine/io/gguf.h"
#include "engine/text/tokenizer.h"

namespace headwater {

// Throws LoadError: a key missing, of another type, or lists that do not match in length.
Vocabulary read_gguf_vocabulary(const GgufFile& file);
// Ids that end a generation by the metadata: eos, eot, eom.
std::vector<int32_t> read_gguf_eos(const GgufFile& file, const Vocabulary& vocabulary);

}  // namespace headwater
