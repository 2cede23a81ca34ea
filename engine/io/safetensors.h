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

#include "engine/io/refusals.h"

namespace headwater {

struct SafetensorsTensor {
  std::string name;
  std::string dtype;           // as stored: "BF16"
  std::vector<int64_t> shape;  // slowest first; empty: a scalar
  int64_t num_bytes = 0;       // of data
  std::span<const std::byte> data;
};

class SafetensorsFile {
 public:
  // name is for messages. Throws LoadError: one sentence with name, field, expected, got.
  static SafetensorsFile parse(std::span<const std::byte> bytes, std::string name);
  // The same; where refusals collects, reads on behind what is wrong. Then a tensor whose entry is
  // wrong is left out, and one whose bytes are not all there has no data.
  static SafetensorsFile parse(std::span<const std::byte> bytes,
                               std::string name,
                               Refusals& refusals);

  const std::string& name() const { return name_; }
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // in data order
  const SafetensorsTensor* find(std::string_view tensor) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  void read(std::span<const std::byte> bytes, Refusals& refusals);

  std::string name_;
  std::vector<SafetensorsTensor> tensors_;
  std::unordered_map<std::string_view, size_t> idx_;
  std::map<std::string, std::string> metadata_;
};

// model.safetensors.index.json: tensor -> file name in the same folder.
std::map<std::string, std::string> parse_safetensors_index(std::string_view text,
                                                           const std::string& name);

}  // namespace headwater
