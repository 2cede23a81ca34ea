// GgufWriter: builds GGUF files for tests, right ones and, through raw(), wrong ones.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/gguf.h"

namespace headwater::testing {

// Little-endian bytes of a number.
template <typename T>
std::string le_bytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

// A GGUF string: length, then bytes.
inline std::string gguf_string(std::string_view text) {
  return le_bytes<uint64_t>(text.size()) + std::string(text);
}

class GgufWriter {
 public:
  void set_version(uint32_t version) { version_ = version; }
  void set_alignment(uint32_t alignment);  // also writes general.alignment

  void add_u32(std::string_view key, uint32_t value);
  void add_f32(std::string_view key, float value);
  void add_bool(std::string_view key, bool value);
  void add_string(std::string_view key, std::string_view value);
  void add_strings(std::string_view key, std::span<const std::string> values);
  void add_i32s(std::string_view key, std::span<const int32_t> values);
  // value: the bytes after the type id, as they shall lie in the file.
  void add_raw(std::string_view key, GgufType type, std::string_view value);

  // A key, or a tensor, of another file.
  void add_copy(std::string_view key, const GgufValue& value);
  void add_copy(const GgufTensor& tensor);

  // ne: fastest first. The offset is computed.
  void add_tensor(std::string_view name,
                  std::span<const int64_t> ne,
                  int32_t ggml_type,
                  std::string data);
  // The same with the header's offset as given, for broken files.
  void add_tensor_at(std::string_view name,
                     std::span<const int64_t> ne,
                     int32_t ggml_type,
                     std::string data,
                     uint64_t offset);

  std::string bytes() const;
  int64_t header_bytes() const;  // up to the padding before the first tensor

 private:
  std::string header() const;

  uint32_t version_ = 3;
  uint32_t alignment_ = 32;
  uint64_t num_metadata_ = 0;
  uint64_t num_tensors_ = 0;
  std::string metadata_;
  std::string tensor_headers_;
  std::string data_;
};

// The file with one more key.
std::string with_u32(const std::string& bytes, std::string_view key, uint32_t value);
// The file as num_parts split files: the first has the metadata, all have a share of the tensors.
std::vector<std::string> split_gguf(const std::string& bytes, int num_parts);

}  // namespace headwater::testing
