// MappedFile: a file's bytes, read-only, by mmap. Move-only; views die with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace headwater {

bool file_exists(const std::string& path);  // false also where it may not be looked at

class MappedFile {
 public:
  // Throws LoadError (path and reason).
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {data_, static_cast<size_t>(size_)}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), bytes().size()}; }
  const std::string& path() const { return path_; }
  // The pages stay valid but leave resident memory (they come back from the file when touched).
  void drop_resident() const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace headwater
