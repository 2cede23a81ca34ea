// The text side of a model's files, which needs no weights: vocabulary and chat template.
#pragma once

#include <string>

#include "engine/text/tokenizer.h"

namespace headwater {

// path: a GGUF file, with or without tensors; a tokenizer.json; or a folder that holds one. Throw
// LoadError.
Vocabulary read_vocabulary(const std::string& path);
std::string read_chat_template(const std::string& path);  // "" = the model has none

// Of a Hugging Face folder, which is not checked for anything else. Throws LoadError.
Vocabulary read_hf_vocabulary(const std::string& folder);
std::string read_hf_chat_template(const std::string& folder);

}  // namespace headwater
