#include "engine/io/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in place");

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr int64_t kMaxTensorName = 63;
constexpr int64_t kMinAlignment = 8;
constexpr int64_t kMaxAlignment = 1 << 20;
constexpr int64_t kMinMetadataBytes = 8 + 1 + 4 + 1;        // key length, key, type, value
constexpr int64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // one dimension

constexpr GgmlType kStorage[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},
    {41, "Q1_0", 128, 18},    {42, "Q2_0", 64, 18},
};

struct TypeRow {
  std::string_view name;
  int64_t bytes;  // 0: not of fixed size
};
constexpr TypeRow kTypes[] = {
    {"u8", 1},
    {"i8", 1},
    {"u16", 2},
    {"i16", 2},
    {"u32", 4},
    {"i32", 4},
    {"f32", 4},
    {"bool", 1},
    {"string", 0},
    {"array", 0},
    {"u64", 8},
    {"i64", 8},
    {"f64", 8},
};

int64_t type_bytes(GgufType type) { return kTypes[static_cast<size_t>(type)].bytes; }

template <typename T>
T load(std::span<const std::byte> bytes, int64_t idx = 0) {
  T value;
  std::memcpy(&value, bytes.data() + idx * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// A position in the header that cannot leave the file. what names the field in messages.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  int64_t offset() const { return offset_; }
  int64_t left() const { return static_cast<int64_t>(bytes_.size()) - offset_; }

  std::span<const std::byte> take(uint64_t size, std::string_view what) {
    if (size > static_cast<uint64_t>(left())) {
      fail(std::string(what) + " at byte " + std::to_string(offset_) + " needs " +
           std::to_string(size) + " bytes but the file ends " + std::to_string(left()) +
           " bytes later: " + std::to_string(size - static_cast<uint64_t>(left())) +
           " bytes are missing (the file is truncated or corrupt)");
    }
    const auto part = bytes_.subspan(static_cast<size_t>(offset_), static_cast<size_t>(size));
    offset_ += static_cast<int64_t>(size);
    return part;
  }
  template <typename T>
  T read(std::string_view what) {
    return load<T>(take(sizeof(T), what));
  }
  std::string_view read_string(std::string_view what) {
    const auto size = read<uint64_t>(what);
    const auto text = take(size, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }
  // A number of items of at least item_bytes each, refused when the rest of the file is too small.
  int64_t read_count(int64_t item_bytes, std::string_view what) {
    const auto count = read<uint64_t>(what);
    const auto max = static_cast<uint64_t>(left() / item_bytes);
    if (count > max) {
      fail(std::string(what) + " is " + std::to_string(count) +
           " but the rest of the file has room for at most " + std::to_string(max) +
           " (the file is truncated or corrupt)");
    }
    return static_cast<int64_t>(count);
  }
  [[noreturn]] void fail(const std::string& message) const {
    throw LoadError(name_ + ": " + message);
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
  int64_t offset_ = 0;
};

GgufType read_type(Cursor& cursor, const std::string& what) {
  const auto type = cursor.read<int32_t>(what);
  if (type < 0 || type > static_cast<int32_t>(GgufType::kF64)) {
    cursor.fail(what + " has value type " + std::to_string(type) + ", expected 0 to 12");
  }
  return static_cast<GgufType>(type);
}

void check_bools(Cursor& cursor, const GgufValue& value, const std::string& what) {
  for (const std::byte byte : value.bytes) {
    if (static_cast<uint8_t>(byte) > 1) {
      cursor.fail(what + " is a bool, expected 0 or 1, got " +
                  std::to_string(static_cast<uint8_t>(byte)));
    }
  }
}

GgufValue read_value(Cursor& cursor, std::span<const std::byte> file, const std::string& what) {
  GgufValue value;
  value.type = read_type(cursor, what);
  if (value.type == GgufType::kArray) {
    value.is_array = true;
    value.type = read_type(cursor, what);
    if (value.type == GgufType::kArray)
      cursor.fail(what + " is an array of arrays, which is not supported");
    const int64_t item_bytes = value.type == GgufType::kString ? 8 : type_bytes(value.type);
    value.count = cursor.read_count(item_bytes, "the element count of " + what);
  }
  const int64_t begin = cursor.offset();
  if (value.type == GgufType::kString) {
    for (int64_t i = 0; i < value.count; ++i) cursor.read_string(what);
  } else {
    cursor.take(static_cast<uint64_t>(value.count * type_bytes(value.type)), what);
  }
  value.bytes =
      file.subspan(static_cast<size_t>(begin), static_cast<size_t>(cursor.offset() - begin));
  if (value.type == GgufType::kBool) check_bools(cursor, value, what);
  return value;
}

struct TensorHeader {
  GgufTensor tensor;
  uint64_t offset = 0;
  int64_t bytes = 0;
};

TensorHeader read_tensor(Cursor& cursor, int64_t idx) {
  TensorHeader header;
  GgufTensor& tensor = header.tensor;
  const std::string number = "tensor " + std::to_string(idx);
  tensor.name = cursor.read_string("the name of " + number);
  if (tensor.name.empty() || static_cast<int64_t>(tensor.name.size()) > kMaxTensorName) {
    cursor.fail(number + " has a name of " + std::to_string(tensor.name.size()) +
                " bytes, expected 1 to " + std::to_string(kMaxTensorName));
  }
  const std::string what = "tensor " + quote(tensor.name);
  const auto num_dims = cursor.read<uint32_t>(what);
  if (num_dims < 1 || num_dims > tensor.ne.size()) {
    cursor.fail(what + " has " + std::to_string(num_dims) + " dimensions, expected 1 to 4");
  }
  tensor.num_dims = static_cast<int>(num_dims);
  int64_t elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    tensor.ne[i] = cursor.read<int64_t>(what);
    if (tensor.ne[i] < 1) {
      cursor.fail(what + " has dimension " + std::to_string(i) + " of size " +
                  std::to_string(tensor.ne[i]) + ", expected at least 1");
    }
    if (__builtin_mul_overflow(elements, tensor.ne[i], &elements)) {
      cursor.fail(what + " has more elements than a 64-bit number can count");
    }
  }
  const auto type_id = cursor.read<int32_t>(what);
  tensor.type = find_ggml_storage(type_id);
  if (tensor.type == nullptr) {
    cursor.fail(what + " has type id " + std::to_string(type_id) +
                ", which the format does not define");
  }
  if (tensor.ne[0] % tensor.type->block_elements != 0) {
    cursor.fail(what + " of type " + std::string(tensor.type->name) + " has rows of " +
                std::to_string(tensor.ne[0]) + " elements, expected a multiple of " +
                std::to_string(tensor.type->block_elements));
  }
  if (__builtin_mul_overflow(elements / tensor.type->block_elements,
                             static_cast<int64_t>(tensor.type->block_bytes),
                             &header.bytes)) {
    cursor.fail(what + " has more bytes than a 64-bit number can count");
  }
  header.offset = cursor.read<uint64_t>(what);
  return header;
}

int64_t padding(int64_t size, int64_t alignment) {
  return (alignment - size % alignment) % alignment;
}

// The tensors' data must lie one after another in file order, each padded to the alignment.
//   | header | pad | t0 | pad | t1 | pad | ... | tn |     base = first byte of t0
void place_tensors(Cursor& cursor,
                   std::span<const std::byte> file,
                   int64_t alignment,
                   std::vector<TensorHeader>& headers) {
  int64_t begin = 0;  // relative to base
  int64_t end = 0;
  for (const TensorHeader& header : headers) {
    const std::string_view name = header.tensor.name;
    if (header.offset != static_cast<uint64_t>(begin)) {
      cursor.fail("tensor " + quote(name) + " has offset " + std::to_string(header.offset) +
                  ", expected " + std::to_string(begin) +
                  " (tensors follow each other without gap or overlap)");
    }
    if (__builtin_add_overflow(begin, header.bytes, &end) ||
        __builtin_add_overflow(end, padding(end, alignment), &begin)) {
      cursor.fail("tensor " + quote(name) + " ends beyond any possible file");
    }
  }
  if (headers.empty()) return;
  const auto size = static_cast<int64_t>(file.size());
  const int64_t base = cursor.offset() + padding(cursor.offset(), alignment);
  int64_t needed = 0;
  if (__builtin_add_overflow(base, end, &needed))
    cursor.fail("the tensors end beyond any possible file");
  if (needed > size) {
    cursor.fail("the tensors end at byte " + std::to_string(needed) + " but the file has " +
                std::to_string(size) + ": " + std::to_string(needed - size) +
                " bytes are missing (the file is truncated; download it again)");
  }
  for (TensorHeader& header : headers) {
    header.tensor.data =
        file.subspan(static_cast<size_t>(base) + header.offset, static_cast<size_t>(header.bytes));
  }
}

uint32_t read_version(Cursor& cursor) {
  const auto magic = cursor.read<uint32_t>("the magic number");
  if (magic != kMagic) cursor.fail("is not a GGUF file: expected the first bytes \"GGUF\"");
  const auto version = cursor.read<uint32_t>("the version");
  if (version != 0 && (version & 0xFFFF) == 0)
    cursor.fail("is a big-endian GGUF file; expected little-endian");
  if (version != 2 && version != 3) {
    cursor.fail("has GGUF version " + std::to_string(version) + ", expected 2 or 3");
  }
  return version;
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

std::string_view gguf_type_name(GgufType type) { return kTypes[static_cast<size_t>(type)].name; }

const GgmlType* find_ggml_storage(int32_t id) {
  for (const GgmlType& type : kStorage) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

GgufFile GgufFile::parse(std::span<const std::byte> bytes, std::string name) {
  GgufFile file;
  file.name_ = std::move(name);
  Cursor cursor(bytes, file.name_);
  file.version_ = read_version(cursor);
  const int64_t num_tensors = cursor.read_count(kMinTensorBytes, "the tensor count");
  const int64_t num_metadata = cursor.read_count(kMinMetadataBytes, "the metadata count");

  file.metadata_.reserve(static_cast<size_t>(num_metadata));
  for (int64_t i = 0; i < num_metadata; ++i) {
    const std::string_view key = cursor.read_string("metadata key " + std::to_string(i));
    if (key.empty()) cursor.fail("metadata key " + std::to_string(i) + " is empty");
    const GgufValue value = read_value(cursor, bytes, "metadata key " + quote(key));
    if (!file.metadata_idx_.emplace(key, file.metadata_.size()).second) {
      cursor.fail("metadata key " + quote(key) + " appears twice");
    }
    file.metadata_.emplace_back(key, value);
  }
  file.alignment_ = file.integer("general.alignment", {kMinAlignment, kMaxAlignment}).value_or(32);
  if (!std::has_single_bit(static_cast<uint64_t>(file.alignment_))) {
    cursor.fail("metadata key \"general.alignment\" is " + std::to_string(file.alignment_) +
                ", expected a power of two");
  }

  std::vector<TensorHeader> headers;
  headers.reserve(static_cast<size_t>(num_tensors));
  for (int64_t i = 0; i < num_tensors; ++i) {
    headers.push_back(read_tensor(cursor, i));
    if (!file.tensor_idx_.emplace(headers.back().tensor.name, headers.size() - 1).second) {
      cursor.fail("tensor " + quote(headers.back().tensor.name) + " appears twice");
    }
  }
  place_tensors(cursor, bytes, file.alignment_, headers);
  file.tensors_.reserve(headers.size());
  for (const TensorHeader& header : headers) file.tensors_.push_back(header.tensor);
  return file;
}

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
  Cursor cursor(value->bytes, name_);
  for (int64_t i = 0; i < value->count; ++i) texts.push_back(cursor.read_string(key));
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
