// LoadedModel: everything a model's files say, as views: spec, weights, vocabulary, template.
// Nothing is copied but small metadata and norms; the mapped files live inside.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/io/mapped_file.h"
#include "engine/io/refusals.h"
#include "engine/model/model_spec.h"
#include "engine/text/tokenizer.h"

namespace headwater {

struct LoadedModel {
  std::string path;
  std::string name;  // general.name, or the folder's name
  ModelSpec spec;
  ModelWeights weights;
  Vocabulary vocabulary;
  std::string chat_template;           // "" = none
  std::vector<int32_t> eos_token_ids;  // from generation_config / config / metadata, without eog
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;
  std::string weight_format;  // formats found, most bytes first: "Q4_1 + Q8_0"

  std::vector<MappedFile> files;
  std::vector<std::vector<float>> owned;  // small tensors converted to F32 (norms, biases)
};

// A .gguf file, or a folder with config.json, *.safetensors and tokenizer.json. Throws LoadError:
// one sentence that names the file, the field, what was expected and what was found.
std::unique_ptr<LoadedModel> load_model(const std::string& path);
// The same; where refusals collects, what could be read, which is not to be run.
std::unique_ptr<LoadedModel> load_model(const std::string& path, Refusals& refusals);

}  // namespace headwater
