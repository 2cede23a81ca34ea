// Where tests find data that is not in the repository; nullopt: not on this machine, skip.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

namespace headwater::testing {

// Below $HEADWATER_SHARED, by default ../shared beside the repository.
inline std::optional<std::string> shared_path(const std::string& relative) {
  const char* root = std::getenv("HEADWATER_SHARED");
  const std::filesystem::path path =
      std::filesystem::path(root != nullptr ? root : HW_SOURCE_DIR "/../shared") / relative;
  if (!std::filesystem::exists(path)) return std::nullopt;
  return path.string();
}

// $HEADWATER_SMOLLM2, by default where the quickstart puts the file.
inline std::optional<std::string> smollm2_path() {
  const char* file = std::getenv("HEADWATER_SMOLLM2");
  const std::filesystem::path path =
      file != nullptr ? file : HW_SOURCE_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return path.string();
}

}  // namespace headwater::testing
