#include "engine/io/gguf.h"

#include <bit>
#include <cstring>
#include <map>
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
constexpr uint64_t kMaxFileBytes = 1ull << 50;
constexpr int64_t kMinMetadataBytes = 8 + 1 + 4 + 1;        // key length, key, type, value
constexpr int64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // one dimension

int64_t type_bytes(GgufType type) {  // 0: not of fixed size
  constexpr int64_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<size_t>(type)];
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
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
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
      // A count that no file could hold is corrupt; one that a larger file could may be cut off.
      uint64_t needed = 0;
      const bool possible =
          !__builtin_mul_overflow(count, static_cast<uint64_t>(item_bytes), &needed) &&
          needed < kMaxFileBytes;
      fail(std::string(what) + " is " + std::to_string(count) +
           " but the rest of the file has room for at most " + std::to_string(max) +
           (possible ? ": at least " + std::to_string(needed - static_cast<uint64_t>(left())) +
                           " bytes are missing (the file is truncated or corrupt)"
                     : " (the file is corrupt)"));
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
  std::string what;  // for messages
  int32_t type_id = 0;
  uint64_t offset = 0;
};

// The fields as they lie in the file. Throws where the next tensor could not be found.
TensorHeader read_fields(Cursor& cursor, int64_t idx) {
  TensorHeader header;
  GgufTensor& tensor = header.tensor;
  const std::string number = "tensor " + std::to_string(idx);
  tensor.name = cursor.read_string("the name of " + number);
  if (tensor.name.empty() || static_cast<int64_t>(tensor.name.size()) > kMaxTensorName) {
    cursor.fail(number + " has a name of " + std::to_string(tensor.name.size()) +
                " bytes, expected 1 to " + std::to_string(kMaxTensorName));
  }
  header.what = "tensor " + quote(tensor.name);
  const auto num_dims = cursor.read<uint32_t>(header.what);
  if (num_dims < 1 || num_dims > tensor.ne.size()) {
    cursor.fail(header.what + " has " + std::to_string(num_dims) + " dimensions, expected 1 to 4");
  }
  tensor.num_dims = static_cast<int>(num_dims);
  for (uint32_t i = 0; i < num_dims; ++i) tensor.ne[i] = cursor.read<int64_t>(header.what);
  header.type_id = cursor.read<int32_t>(header.what);
  header.offset = cursor.read<uint64_t>(header.what);
  return header;
}

// Shape and bytes.
void check_fields(const Cursor& cursor, TensorHeader& header) {
  GgufTensor& tensor = header.tensor;
  int64_t elements = 1;
  for (int i = 0; i < tensor.num_dims; ++i) {
    const int64_t size = tensor.ne[static_cast<size_t>(i)];
    if (size < 1) {
      cursor.fail(header.what + " has dimension " + std::to_string(i) + " of size " +
                  std::to_string(size) + ", expected at least 1");
    }
    if (__builtin_mul_overflow(elements, size, &elements)) {
      cursor.fail(header.what + " has more elements than a 64-bit number can count");
    }
  }
  if (tensor.ne[0] % tensor.type->block_elements != 0) {
    cursor.fail(header.what + " of type " + std::string(tensor.type->name) + " has rows of " +
                std::to_string(tensor.ne[0]) + " elements, expected a multiple of " +
                std::to_string(tensor.type->block_elements));
  }
  if (__builtin_mul_overflow(elements / tensor.type->block_elements,
                             static_cast<int64_t>(tensor.type->block_bytes),
                             &tensor.num_bytes)) {
    cursor.fail(header.what + " has more bytes than a 64-bit number can count");
  }
}

int64_t padding(int64_t size, int64_t alignment) {
  return (alignment - size % alignment) % alignment;
}

// The tensors' data must lie one after another in file order, each padded to the alignment.
//   | header | pad | t0 | pad | t1 | pad | ... | tn |     base = first byte of t0
// Throws where they do not; then no tensor has data.
void check_offsets(const Cursor& cursor,
                   int64_t alignment,
                   const std::vector<TensorHeader>& headers) {
  int64_t begin = 0;  // relative to base
  for (const TensorHeader& header : headers) {
    if (header.offset != static_cast<uint64_t>(begin)) {
      cursor.fail(header.what + " has offset " + std::to_string(header.offset) + ", expected " +
                  std::to_string(begin) + " (tensors follow each other without gap or overlap)");
    }
    int64_t end = 0;
    if (__builtin_add_overflow(begin, header.tensor.num_bytes, &end) ||
        __builtin_add_overflow(end, padding(end, alignment), &begin) ||
        begin > static_cast<int64_t>(kMaxFileBytes)) {
      cursor.fail(header.what + " ends beyond any possible file");
    }
  }
}

// Gives each tensor its data; throws, after that, when the file ends before the last one does.
void place_tensors(const Cursor& cursor,
                   std::span<const std::byte> file,
                   int64_t alignment,
                   std::vector<TensorHeader>& headers) {
  if (headers.empty()) return;
  const auto size = static_cast<int64_t>(file.size());
  const int64_t base = cursor.offset() + padding(cursor.offset(), alignment);
  int64_t end = 0;
  for (TensorHeader& header : headers) {
    const int64_t begin = base + static_cast<int64_t>(header.offset);
    end = begin + header.tensor.num_bytes;
    if (end > size) continue;
    header.tensor.data =
        file.subspan(static_cast<size_t>(begin), static_cast<size_t>(header.tensor.num_bytes));
  }
  if (end > size) {
    cursor.fail("the tensors end at byte " + std::to_string(end) + " but the file has " +
                std::to_string(size) + ": " + std::to_string(end - size) +
                " bytes are missing (the file is truncated; download it again)");
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

}  // namespace

// The steps of parse(), in file order.
class GgufFile::Reader {
 public:
  Reader(GgufFile& file, std::span<const std::byte> bytes)
      : file_(file), bytes_(bytes), cursor_(bytes, file.name_) {}

  void read_metadata() {
    file_.version_ = read_version(cursor_);
    num_tensors_ = cursor_.read_count(kMinTensorBytes, "the tensor count");
    const int64_t num_metadata = cursor_.read_count(kMinMetadataBytes, "the metadata count");
    file_.metadata_.reserve(static_cast<size_t>(num_metadata));
    for (int64_t i = 0; i < num_metadata; ++i) {
      const std::string_view key = cursor_.read_string("metadata key " + std::to_string(i));
      if (key.empty()) cursor_.fail("metadata key " + std::to_string(i) + " is empty");
      const GgufValue value = read_value(cursor_, bytes_, "metadata key " + quote(key));
      if (!file_.metadata_idx_.emplace(key, file_.metadata_.size()).second) {
        cursor_.fail("metadata key " + quote(key) + " appears twice");
      }
      file_.metadata_.emplace_back(key, value);
    }
    file_.alignment_ =
        file_.integer("general.alignment", {kMinAlignment, kMaxAlignment}).value_or(32);
    if (!std::has_single_bit(static_cast<uint64_t>(file_.alignment_))) {
      cursor_.fail("metadata key \"general.alignment\" is " + std::to_string(file_.alignment_) +
                   ", expected a power of two");
    }
  }

  void read_tensors(Refusals& refusals) {
    std::vector<TensorHeader> headers;
    headers.reserve(static_cast<size_t>(num_tensors_));
    bool placeable = refusals.attempt([&] {
      for (int64_t i = 0; i < num_tensors_; ++i) headers.push_back(read_fields(cursor_, i));
    });
    std::map<int32_t, std::vector<const TensorHeader*>> unknown;  // by type id
    for (size_t i = 0; i < headers.size(); ++i) {
      TensorHeader& header = headers[i];
      header.tensor.type = find_ggml_storage(header.type_id);
      if (header.tensor.type == nullptr) unknown[header.type_id].push_back(&header);
      placeable &= refusals.attempt([&] {
        if (!file_.tensor_idx_.emplace(header.tensor.name, i).second) {
          cursor_.fail(header.what + " appears twice");
        }
        if (header.tensor.type != nullptr) check_fields(cursor_, header);
      });
    }
    for (const auto& [id, of_type] : unknown) {
      placeable = false;
      refusals.add(file_.name_ + ": " + of_type.front()->what + " is of " + describe_ggml_type(id) +
                   (of_type.size() == 1
                        ? ""
                        : "; so are " + std::to_string(of_type.size() - 1) + " further tensors"));
    }
    if (placeable) {
      refusals.attempt([&] {
        check_offsets(cursor_, file_.alignment_, headers);
        place_tensors(cursor_, bytes_, file_.alignment_, headers);
      });
    }
    file_.tensors_.reserve(headers.size());
    for (const TensorHeader& header : headers) file_.tensors_.push_back(header.tensor);
  }

 private:
  GgufFile& file_;
  std::span<const std::byte> bytes_;
  Cursor cursor_;
  int64_t num_tensors_ = 0;
};

GgufFile GgufFile::parse(std::span<const std::byte> bytes, std::string name) {
  Refusals refusals = Refusals::thrown();
  return parse(bytes, std::move(name), refusals);
}

GgufFile GgufFile::parse(std::span<const std::byte> bytes, std::string name, Refusals& refusals) {
  GgufFile file;
  file.name_ = std::move(name);
  Reader reader(file, bytes);
  file.has_metadata_ = refusals.attempt([&] { reader.read_metadata(); });
  if (file.has_metadata_) reader.read_tensors(refusals);
  return file;
}

}  // namespace headwater
