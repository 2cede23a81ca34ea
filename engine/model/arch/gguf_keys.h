// GgufKeys: the metadata of one architecture by the names behind "<architecture>.".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/model/tensor_set.h"

namespace headwater {

class GgufKeys {
 public:
  // Not owned.
  GgufKeys(const GgufFile& file, const TensorSet& tensors, std::string_view architecture)
      : file_(file), tensors_(tensors), prefix_(std::string(architecture) + ".") {}

  const GgufFile& file() const { return file_; }
  const TensorSet& tensors() const { return tensors_; }
  const std::string& file_name() const { return file_.name(); }
  std::string key(std::string_view name) const { return prefix_ + std::string(name); }

  std::optional<int64_t> integer(std::string_view name, IntRange range = {}) const {
    return file_.integer(key(name), range);
  }
  double number_or(std::string_view name, double fallback) const {
    return file_.number(key(name)).value_or(fallback);
  }
  int64_t required_integer(std::string_view name, IntRange range) const {
    return file_.required_integer(key(name), range);
  }
  double required_number(std::string_view name) const { return file_.required_number(key(name)); }
  // A scalar for all layers, or one value per layer; empty: the key is absent.
  std::vector<int32_t> per_layer(std::string_view name, size_t num_layers, IntRange range) const;

 private:
  const GgufFile& file_;
  const TensorSet& tensors_;
  std::string prefix_;
};

}  // namespace headwater
