// tokenizer.json and tokenizer_config.json of an HF folder as a Vocabulary: BPE over bytes or
// characters, and Unigram; whatever would change the ids and is not understood is refused by name.
#pragma once

#include <string>
#include <string_view>

#include "engine/text/tokenizer.h"

namespace headwater {

// config: the text of tokenizer_config.json, "" if there is none; it names bos, eos, unk and pad.
// source: the file, for messages. Throws LoadError.
Vocabulary load_tokenizer_json(std::string_view tokenizer,
                               std::string_view config,
                               const std::string& source);

}  // namespace headwater
