// Where the text tests find their data; what is not there is skipped.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace headwater::test {

inline std::optional<std::string> read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline std::filesystem::path from_env(const char* name, const std::string& fallback) {
  const char* value = std::getenv(name);
  return value ? value : fallback;
}

inline nlohmann::ordered_json golden(const std::string& name) {
  return nlohmann::ordered_json::parse(read_text(HW_SOURCE_DIR "/tests/data/text/" + name).value());
}

inline std::filesystem::path shared_folder() {
  return from_env("HEADWATER_SHARED", HW_SOURCE_DIR "/../shared");
}

inline std::filesystem::path smollm2_file() {
  return from_env("HEADWATER_SMOLLM2", HW_SOURCE_DIR "/models/SmolLM2-135M-Instruct.Q4_1.gguf");
}

}  // namespace headwater::test
