#include "engine/model/loaded_model.h"

#include <filesystem>

#include "engine/model/gguf_model.h"
#include "engine/model/hf_model.h"
#include "kernels/base/status.h"

namespace headwater {

std::unique_ptr<LoadedModel> load_model(const std::string& path) {
  Refusals refusals = Refusals::thrown();
  return load_model(path, refusals);
}

std::unique_ptr<LoadedModel> load_model(const std::string& path, Refusals& refusals) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    throw LoadError(path + ": does not exist; expected a .gguf file or a Hugging Face folder");
  }
  if (error) throw LoadError(path + ": cannot be examined: " + error.message());
  return is_directory(status) ? load_hf_model(path, refusals) : load_gguf_model(path, refusals);
}

}  // namespace headwater
