// GgufFile: the container of a GGUF file (version 2 and 3), checked and indexed. Knows nothing of
// architectures. All views point into the bytes given to parse(); nothing is copied but the index.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/io/int_range.h"
#include "engine/io/refusals.h"

namespace headwater {

enum class GgufType : uint8_t {  // values as stored
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};
std::string_view gguf_type_name(GgufType type);

// A scalar, or the elements of an array back to back, as stored.
struct GgufValue {
  GgufType type = GgufType::kU8;  // of the value or of the elements, never kArray
  bool is_array = false;
  int64_t count = 1;
  std::span<const std::byte> bytes;
};

// A tensor type the format defines, whether or not we compute with it.
struct GgmlType {
  int32_t id;
  std::string_view name;
  int32_t block_elements;
  int32_t block_bytes;
};
const GgmlType* find_ggml_storage(int32_t id);  // nullptr: unknown or removed from the format
// "type Q5_0 (id 6)"; also for what find_ggml_storage does not know.
std::string describe_ggml_type(int32_t id);

struct GgufTensor {
  std::string_view name;
  const GgmlType* type = nullptr;
  int num_dims = 0;
  std::array<int64_t, 4> ne{1, 1, 1, 1};  // fastest first, as stored
  int64_t num_bytes = 0;                  // of data
  std::span<const std::byte> data;
};

class GgufFile {
 public:
  // name is for messages. Throws LoadError: one sentence with name, field, expected, got.
  static GgufFile parse(std::span<const std::byte> bytes, std::string name);
  // The same; where refusals collects, reads on behind what is wrong. Then a tensor may have no
  // type (an id that is not known), no num_bytes or no data.
  static GgufFile parse(std::span<const std::byte> bytes, std::string name, Refusals& refusals);

  const std::string& name() const { return name_; }
  uint32_t version() const { return version_; }
  bool has_metadata() const { return has_metadata_; }  // false: it was refused, or a part of it was
  int64_t alignment() const { return alignment_; }
  const std::vector<std::pair<std::string_view, GgufValue>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  const GgufValue* find(std::string_view key) const;
  const GgufTensor* find_tensor(std::string_view name) const;

  // Typed metadata: nullopt when the key is absent; LoadError when it is of another type or out of
  // range. Any integer width is accepted for integers, F32 and F64 for numbers.
  std::optional<int64_t> integer(std::string_view key, IntRange range = {}) const;
  std::optional<double> number(std::string_view key) const;  // finite
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> string(std::string_view key) const;
  // Arrays; integers() also takes a scalar, as one element.
  std::optional<std::vector<int64_t>> integers(std::string_view key, IntRange range = {}) const;
  std::optional<std::vector<float>> numbers(std::string_view key) const;
  std::optional<std::vector<std::string_view>> strings(std::string_view key) const;

  // The same, for keys a model cannot be read without.
  int64_t required_integer(std::string_view key, IntRange range = {}) const;
  double required_number(std::string_view key) const;
  std::string_view required_string(std::string_view key) const;

 private:
  class Reader;
  std::string name_;
  uint32_t version_ = 0;
  bool has_metadata_ = false;
  int64_t alignment_ = 32;
  std::vector<std::pair<std::string_view, GgufValue>> metadata_;  // in file order
  std::vector<GgufTensor> tensors_;                               // in file order
  std::unordered_map<std::string_view, size_t> metadata_idx_;
  std::unordered_map<std::string_view, size_t> tensor_idx_;
};

}  // namespace headwater
