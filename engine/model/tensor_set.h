// TensorSet: the tensors of a model's files by name, whatever the container.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/io/safetensors.h"
#include "kernels/quant/quant_format.h"

namespace headwater {

struct StoredTensor {
  std::string file;  // for messages
  std::string name;
  std::string type;        // as the file spells it: "Q5_K", "F8_E4M3"; "": the file refused it
  int32_t ggml_type = -1;  // its id in a GGUF file
  std::optional<QuantFormat> format;  // nullopt: a type that is not computed with
  std::vector<int64_t> shape;         // slowest first: a matrix is [outputs, inputs]
  int64_t num_bytes = 0;              // of data
  std::span<const std::byte> data;    // view into the mapped file
};

class TensorSet {
 public:
  // Both throw LoadError when a name was added before.
  void add(const GgufFile& file);
  void add(const SafetensorsFile& file);

  // Tensors whose names begin by `from` are found by names that begin by `to` from now on. Throws
  // LoadError when such a name is taken.
  void rename(std::string_view from, std::string_view to);

  const StoredTensor* find(std::string_view name) const;
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }

 private:
  void add(StoredTensor tensor);
  std::map<std::string, StoredTensor, std::less<>> tensors_;
};

// "tensor NAME of FILE", for messages.
std::string describe(const StoredTensor& tensor);
// The elements as F32. Throws LoadError when the type is not supported.
std::vector<float> decode_tensor(const StoredTensor& tensor);
// The tensor's format; throws the LoadError of unsupported_type().
QuantFormat supported_format(const StoredTensor& tensor);
// The sentence that refuses a tensor's type: its name and id, the supported ones, where to get a
// file of these. num_more: further tensors of that type.
std::string unsupported_type(const StoredTensor& tensor, int64_t num_more = 0);

}  // namespace headwater
