// GgufFile's typed access to metadata.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/io/gguf.h"
#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

template <typename T>
T load(std::span<const std::byte> bytes, int64_t idx = 0) {
  T value;
  std::memcpy(&value, bytes.data() + idx * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

bool is_integer(GgufType type) {
  return type <= GgufType::kI32 || type == GgufType::kU64 || type == GgufType::kI64;
}

// u64 values beyond int64 saturate: they are above the range of any field.
int64_t element_integer(const GgufValue& value, int64_t idx) {
  switch (value.type) {
    case GgufType::kU8:
      return load<uint8_t>(value.bytes, idx);
    case GgufType::kI8:
      return load<int8_t>(value.bytes, idx);
    case GgufType::kU16:
      return load<uint16_t>(value.bytes, idx);
    case GgufType::kI16:
      return load<int16_t>(value.bytes, idx);
    case GgufType::kU32:
      return load<uint32_t>(value.bytes, idx);
    case GgufType::kI32:
      return load<int32_t>(value.bytes, idx);
    case GgufType::kU64:
      return static_cast<int64_t>(
          std::min(load<uint64_t>(value.bytes, idx),
                   static_cast<uint64_t>(std::numeric_limits<int64_t>::max())));
    default:
      return load<int64_t>(value.bytes, idx);
  }
}

[[noreturn]] void fail_type(const std::string& file,
                            std::string_view key,
                            const GgufValue& value,
                            std::string_view expected) {
  throw LoadError(file + ": metadata key " + quote(key) + " is of type " +
                  (value.is_array ? "array of " : "") + std::string(gguf_type_name(value.type)) +
                  ", expected " + std::string(expected));
}

int64_t checked_integer(const std::string& file,
                        std::string_view key,
                        const GgufValue& value,
                        int64_t idx,
                        IntRange range) {
  const int64_t number = element_integer(value, idx);
  if (number < range.min || number > range.max) {
    throw LoadError(file + ": metadata key " + quote(key) + " is " + std::to_string(number) +
                    ", expected " + std::to_string(range.min) + " to " + std::to_string(range.max));
  }
  return number;
}

[[noreturn]] void fail_missing(const std::string& file, std::string_view key) {
  throw LoadError(file + ": metadata key " + quote(key) +
                  " is missing, expected it in every such model");
}

}  // namespace

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = metadata_idx_.find(key);
  return it == metadata_idx_.end() ? nullptr : &metadata_[it->second].second;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = tensor_idx_.find(name);
  return it == tensor_idx_.end() ? nullptr : &tensors_[it->second];
}

std::optional<int64_t> GgufFile::integer(std::string_view key, IntRange range) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || !is_integer(value->type)) fail_type(name_, key, *value, "an integer");
  return checked_integer(name_, key, *value, 0, range);
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  double number = 0;
  if (!value->is_array && value->type == GgufType::kF32) {
    number = load<float>(value->bytes);
  } else if (!value->is_array && value->type == GgufType::kF64) {
    number = load<double>(value->bytes);
  } else {
    fail_type(name_, key, *value, "f32 or f64");
  }
  if (!std::isfinite(number))
    throw LoadError(name_ + ": metadata key " + quote(key) + " is not a finite number");
  return number;
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufType::kBool) fail_type(name_, key, *value, "bool");
  return load<uint8_t>(value->bytes) != 0;
}

std::optional<std::string_view> GgufFile::string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufType::kString) fail_type(name_, key, *value, "string");
  return std::string_view(reinterpret_cast<const char*>(value->bytes.data()) + 8,
                          value->bytes.size() - 8);
}

std::optional<std::vector<int64_t>> GgufFile::integers(std::string_view key, IntRange range) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!is_integer(value->type)) fail_type(name_, key, *value, "integers");
  std::vector<int64_t> numbers(static_cast<size_t>(value->count));
  for (int64_t i = 0; i < value->count; ++i) {
    numbers[static_cast<size_t>(i)] = checked_integer(name_, key, *value, i, range);
  }
  return numbers;
}

std::optional<std::vector<float>> GgufFile::numbers(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != GgufType::kF32)
    fail_type(name_, key, *value, "array of f32");
  std::vector<float> numbers(static_cast<size_t>(value->count));
  if (!numbers.empty()) std::memcpy(numbers.data(), value->bytes.data(), value->bytes.size());
  return numbers;
}

std::optional<std::vector<std::string_view>> GgufFile::strings(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array || value->type != GgufType::kString)
    fail_type(name_, key, *value, "array of string");
  std::vector<std::string_view> texts;
  texts.reserve(static_cast<size_t>(value->count));
  std::span<const std::byte> rest = value->bytes;  // lengths were checked by parse()
  for (int64_t i = 0; i < value->count; ++i) {
    const auto size = static_cast<size_t>(load<uint64_t>(rest));
    texts.emplace_back(reinterpret_cast<const char*>(rest.data()) + 8, size);
    rest = rest.subspan(8 + size);
  }
  return texts;
}

int64_t GgufFile::required_integer(std::string_view key, IntRange range) const {
  const std::optional<int64_t> value = integer(key, range);
  if (!value) fail_missing(name_, key);
  return *value;
}

double GgufFile::required_number(std::string_view key) const {
  const std::optional<double> value = number(key);
  if (!value) fail_missing(name_, key);
  return *value;
}

std::string_view GgufFile::required_string(std::string_view key) const {
  const std::optional<std::string_view> value = string(key);
  if (!value) fail_missing(name_, key);
  return *value;
}

}  // namespace headwater
