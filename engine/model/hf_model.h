// A model in a Hugging Face folder: config.json, *.safetensors, tokenizer.json and their
// companions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/model/loaded_model.h"
#include "engine/model/tensor_set.h"

namespace headwater {

// Throws LoadError.
std::unique_ptr<LoadedModel> load_hf_model(const std::string& folder);
// The folder's tensors, from one file or from the shards of its index. Throws LoadError.
TensorSet open_hf_tensors(const std::string& folder, std::vector<MappedFile>& files);

}  // namespace headwater
