// A model in a Hugging Face folder: config.json, *.safetensors, tokenizer.json and their
// companions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/io/refusals.h"
#include "engine/model/loaded_model.h"
#include "engine/model/tensor_set.h"

namespace headwater {

// Where refusals collects, what could be read.
std::unique_ptr<LoadedModel> load_hf_model(const std::string& folder, Refusals& refusals);
// The folder's tensors, from one file or from the shards of its index. Refuses a shard that is
// missing or cut and a tensor that is not where the index says, by name.
TensorSet open_hf_tensors(const std::string& folder,
                          std::vector<MappedFile>& files,
                          Refusals& refusals);

}  // namespace headwater
