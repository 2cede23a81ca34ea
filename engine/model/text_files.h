// The text side of a model's files, which needs no weights: vocabulary and chat template.
#pragma once

#include <string>

#include "engine/text/tokenizer.h"

namespace headwater {

struct TextFiles {
  Vocabulary vocabulary;
  std::string chat_template;  // "" = none
};

// path: a GGUF file, with or without tensors; a tokenizer.json; or a folder that holds one. Throws
// LoadError.
TextFiles read_text_files(const std::string& path);

// Of a Hugging Face folder, which is not checked for anything else. Throws LoadError.
Vocabulary read_hf_vocabulary(const std::string& folder);
std::string read_hf_chat_template(const std::string& folder);

}  // namespace headwater
