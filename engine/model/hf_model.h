// A model in a Hugging Face folder: config.json, *.safetensors, tokenizer.json and their
// companions.
#pragma once

#include <memory>
#include <string>

#include "engine/model/loaded_model.h"

namespace headwater {

// Throws LoadError.
std::unique_ptr<LoadedModel> load_hf_model(const std::string& folder);

}  // namespace headwater
