// SafetensorsFile: the container of a .safetensors file, checked and indexed, and the index of a
// sharded model. All views point into the bytes given to parse().
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace headwater {

struct SafetensorsTensor {
  std::string name;
  std::string dtype;           // as stored: "BF16"
  std::vector<int64_t> shape;  // slowest first; empty: a scalar
  std::span<const std::byte> data;
};

class SafetensorsFile {
 public:
  // name is for messages. Throws LoadError: one sentence with name, field, expected, got.
  static SafetensorsFile parse(std::span<const std::byte> bytes, std::string name);

  const std::string& name() const { return name_; }
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // in data order
  const SafetensorsTensor* find(std::string_view tensor) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  std::string name_;
  std::vector<SafetensorsTensor> tensors_;
  std::unordered_map<std::string_view, size_t> idx_;
  std::map<std::string, std::string> metadata_;
};

// model.safetensors.index.json: tensor -> file name in the same folder.
std::map<std::string, std::string> parse_safetensors_index(std::string_view text,
                                                           const std::string& name);

}  // namespace headwater
