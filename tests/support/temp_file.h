// Files for tests that need a path.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace headwater::testing {

void write_file(const std::filesystem::path& path, std::string_view bytes);

// A new folder below the system's temporary one, removed with all it holds.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  // Writes a file below it and returns its path.
  std::string add(const std::string& name, std::string_view bytes) const;

 private:
  std::filesystem::path path_;
};

}  // namespace headwater::testing
