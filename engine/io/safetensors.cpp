#include "engine/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "engine/io/json_object.h"
#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors are read in place");

constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDims = 8;
constexpr JsonLimits kHeaderLimits{kMaxHeaderBytes, 4, 1 << 20};
constexpr JsonLimits kIndexLimits{kMaxHeaderBytes, 3, 1 << 20};

struct DtypeRow {
  std::string_view name;
  int64_t bits;
};
constexpr DtypeRow kDtypes[] = {
    {"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"U16", 16},        {"I16", 16},
    {"F16", 16},    {"BF16", 16},   {"U32", 32},        {"I32", 32},        {"F32", 32},
    {"U64", 64},    {"I64", 64},    {"F64", 64},        {"C64", 64},        {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4},
    {"F6_E2M3", 6}, {"F6_E3M2", 6},
};

std::optional<int64_t> dtype_bits(std::string_view name) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == name) return row.bits;
  }
  return std::nullopt;
}

struct Placed {
  SafetensorsTensor tensor;
  int64_t begin = 0;  // in the data buffer
  int64_t end = 0;
};

std::vector<int64_t> read_sizes(const Json& value, const std::string& what) {
  if (!value.is_array()) throw LoadError(what + " is not a list, expected a list of sizes");
  std::vector<int64_t> sizes;
  for (const Json& element : value) {
    if (!element.is_number_unsigned() || !std::in_range<int64_t>(element.get<uint64_t>())) {
      throw LoadError(what + " has an element that is not a size, expected integers from 0");
    }
    sizes.push_back(element.get<int64_t>());
  }
  return sizes;
}

const Json& field(const Json& entry, const char* key, const std::string& what) {
  const auto it = entry.find(key);
  if (it == entry.end()) throw LoadError(what + " has no " + quote(key));
  return *it;
}

Placed read_tensor(const std::string& file, const std::string& name, const Json& entry) {
  const std::string what = file + ": tensor " + quote(name);
  if (!entry.is_object()) throw LoadError(what + " is not an object in the header");
  Placed placed;
  SafetensorsTensor& tensor = placed.tensor;
  tensor.name = name;
  const Json& dtype = field(entry, "dtype", what);
  if (!dtype.is_string()) throw LoadError(what + ": \"dtype\" is not a string");
  tensor.dtype = dtype.get<std::string>();
  const std::optional<int64_t> bits = dtype_bits(tensor.dtype);
  if (!bits)
    throw LoadError(what + " has dtype " + quote(tensor.dtype) +
                    ", which the format does not define");
  tensor.shape = read_sizes(field(entry, "shape", what), what + ": \"shape\"");
  if (tensor.shape.size() > kMaxDims) {
    throw LoadError(what + " has " + std::to_string(tensor.shape.size()) +
                    " dimensions, expected at most " + std::to_string(kMaxDims));
  }
  const std::vector<int64_t> offsets =
      read_sizes(field(entry, "data_offsets", what), what + ": \"data_offsets\"");
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    throw LoadError(what + ": \"data_offsets\" is not a pair [begin, end] with begin <= end");
  }
  placed.begin = offsets[0];
  placed.end = offsets[1];
  int64_t total_bits = *bits;
  for (const int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(total_bits, size, &total_bits)) {
      throw LoadError(what + " has more bits than a 64-bit number can count");
    }
  }
  if (total_bits % 8 != 0 || total_bits / 8 != placed.end - placed.begin) {
    throw LoadError(what + " occupies " + std::to_string(placed.end - placed.begin) +
                    " bytes, expected " + std::to_string((total_bits + 7) / 8) +
                    " by its shape and dtype " + tensor.dtype);
  }
  tensor.num_bytes = placed.end - placed.begin;
  return placed;
}

std::map<std::string, std::string> read_metadata(const std::string& file, const Json& entry) {
  std::map<std::string, std::string> metadata;
  if (!entry.is_object()) throw LoadError(file + ": \"__metadata__\" is not an object");
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) {
      throw LoadError(file + ": \"__metadata__\" key " + quote(key) + " is not a string");
    }
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

// Sorted by begin, the ranges must cover the data buffer: no hole, no overlap.
void check_cover(const std::string& file, const std::vector<Placed>& placed) {
  int64_t end = 0;
  for (const Placed& part : placed) {
    if (part.begin != end) {
      throw LoadError(file + ": tensor " + quote(part.tensor.name) + " begins at data byte " +
                      std::to_string(part.begin) + ", expected " + std::to_string(end) +
                      " (tensors follow each other without gap or overlap)");
    }
    end = part.end;
  }
}

// Gives each tensor its data; throws, after that, when the data buffer is shorter or longer.
void place_tensors(const std::string& file,
                   std::span<const std::byte> data,
                   std::vector<Placed>& placed) {
  const auto size = static_cast<int64_t>(data.size());
  const int64_t end = placed.empty() ? 0 : placed.back().end;
  for (Placed& part : placed) {
    if (part.end > size) continue;
    part.tensor.data =
        data.subspan(static_cast<size_t>(part.begin), static_cast<size_t>(part.end - part.begin));
  }
  if (end > size) {
    throw LoadError(file + ": the tensors need " + std::to_string(end) +
                    " data bytes but the file has " + std::to_string(size) + ": " +
                    std::to_string(end - size) +
                    " bytes are missing (the file is truncated; download it again)");
  }
  if (end < size) {
    throw LoadError(file + ": " + std::to_string(size - end) +
                    " bytes follow the last tensor, expected none");
  }
}

// The JSON text between the length and the data.
std::string_view read_header(const std::string& file, std::span<const std::byte> bytes) {
  if (bytes.size() < 8) {
    throw LoadError(file + ": has " + std::to_string(bytes.size()) +
                    " bytes, expected at least 8 (the file is truncated or not safetensors)");
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes)) {
    throw LoadError(file + ": the header length is " + std::to_string(header_bytes) +
                    ", expected at most " + std::to_string(kMaxHeaderBytes) +
                    " (the file is corrupt or not safetensors)");
  }
  if (header_bytes > bytes.size() - 8) {
    throw LoadError(file + ": the header needs " + std::to_string(header_bytes) +
                    " bytes but the file ends " + std::to_string(bytes.size() - 8) +
                    " bytes later: " + std::to_string(header_bytes - (bytes.size() - 8)) +
                    " bytes are missing (the file is truncated)");
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  if (!header.starts_with('{')) throw LoadError(file + ": the header does not begin with '{'");
  return header;
}

}  // namespace

SafetensorsFile SafetensorsFile::parse(std::span<const std::byte> bytes, std::string name) {
  Refusals refusals = Refusals::thrown();
  return parse(bytes, std::move(name), refusals);
}

SafetensorsFile SafetensorsFile::parse(std::span<const std::byte> bytes,
                                       std::string name,
                                       Refusals& refusals) {
  SafetensorsFile file;
  file.name_ = std::move(name);
  refusals.attempt([&] { file.read(bytes, refusals); });
  for (size_t i = 0; i < file.tensors_.size(); ++i) file.idx_.emplace(file.tensors_[i].name, i);
  return file;
}

void SafetensorsFile::read(std::span<const std::byte> bytes, Refusals& refusals) {
  const std::string_view header = read_header(name_, bytes);
  const Json root = parse_json(header, name_, kHeaderLimits);
  std::vector<Placed> placed;
  bool placeable = true;
  for (const auto& [key, entry] : root.items()) {
    const auto read_entry = [&, &key = key, &entry = entry] {
      if (key == "__metadata__") {
        metadata_ = read_metadata(name_, entry);
      } else {
        placed.push_back(read_tensor(name_, key, entry));
      }
    };
    placeable &= refusals.attempt(read_entry);
  }
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  if (placeable) {
    refusals.attempt([&] {
      check_cover(name_, placed);
      place_tensors(name_, bytes.subspan(8 + header.size()), placed);
    });
  }
  tensors_.reserve(placed.size());
  for (Placed& part : placed) tensors_.push_back(std::move(part.tensor));
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view tensor) const {
  const auto it = idx_.find(tensor);
  return it == idx_.end() ? nullptr : &tensors_[it->second];
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view text,
                                                           const std::string& name) {
  const JsonObject index = JsonObject::parse(text, name, kIndexLimits);
  const JsonObject weight_map = index.object("weight_map");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : weight_map.value().items()) {
    if (!file.is_string())
      throw LoadError(name + ": tensor " + quote(tensor) + " has no file name");
    const auto file_name = file.get<std::string>();
    if (file_name.empty() ||
        file_name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos ||
        file_name == "." || file_name == "..") {
      throw LoadError(name + ": tensor " + quote(tensor) + " is in file " + quote(file_name) +
                      ", expected a plain file name of the same folder");
    }
    files.emplace(tensor, file_name);
  }
  return files;
}

}  // namespace headwater
