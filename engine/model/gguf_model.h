// A model in one GGUF file, or in the files of a split one.
#pragma once

#include <memory>
#include <string>

#include "engine/io/refusals.h"
#include "engine/model/loaded_model.h"

namespace headwater {

// path: the file, or the first file of a split model. Where refusals collects, what could be read.
std::unique_ptr<LoadedModel> load_gguf_model(const std::string& path, Refusals& refusals);

}  // namespace headwater
