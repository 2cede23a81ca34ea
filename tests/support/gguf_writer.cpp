#include "tests/support/gguf_writer.h"

#include <utility>

namespace headwater::testing {
namespace {

void pad(std::string& bytes, size_t alignment) {
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
}

}  // namespace

void GgufWriter::set_alignment(uint32_t alignment) {
  alignment_ = alignment;
  add_u32("general.alignment", alignment);
}

void GgufWriter::add_u32(std::string_view key, uint32_t value) {
  add_raw(key, GgufType::kU32, le_bytes(value));
}

void GgufWriter::add_f32(std::string_view key, float value) {
  add_raw(key, GgufType::kF32, le_bytes(value));
}

void GgufWriter::add_bool(std::string_view key, bool value) {
  add_raw(key, GgufType::kBool, le_bytes<uint8_t>(value ? 1 : 0));
}

void GgufWriter::add_string(std::string_view key, std::string_view value) {
  add_raw(key, GgufType::kString, gguf_string(value));
}

void GgufWriter::add_strings(std::string_view key, std::span<const std::string> values) {
  std::string bytes = le_bytes(static_cast<int32_t>(GgufType::kString));
  bytes += le_bytes<uint64_t>(values.size());
  for (const std::string& value : values) bytes += gguf_string(value);
  add_raw(key, GgufType::kArray, bytes);
}

void GgufWriter::add_i32s(std::string_view key, std::span<const int32_t> values) {
  std::string bytes = le_bytes(static_cast<int32_t>(GgufType::kI32));
  bytes += le_bytes<uint64_t>(values.size());
  for (const int32_t value : values) bytes += le_bytes(value);
  add_raw(key, GgufType::kArray, bytes);
}

void GgufWriter::add_raw(std::string_view key, GgufType type, std::string_view value) {
  metadata_ += gguf_string(key) + le_bytes(static_cast<int32_t>(type));
  metadata_ += value;
  ++num_metadata_;
}

void GgufWriter::add_tensor(std::string_view name,
                            std::span<const int64_t> ne,
                            int32_t ggml_type,
                            std::string data) {
  pad(data_, alignment_);
  add_tensor_at(name, ne, ggml_type, std::move(data), data_.size());
}

void GgufWriter::add_tensor_at(std::string_view name,
                               std::span<const int64_t> ne,
                               int32_t ggml_type,
                               std::string data,
                               uint64_t offset) {
  pad(data_, alignment_);
  tensor_headers_ += gguf_string(name) + le_bytes(static_cast<uint32_t>(ne.size()));
  for (const int64_t size : ne) tensor_headers_ += le_bytes(size);
  tensor_headers_ += le_bytes(ggml_type) + le_bytes(offset);
  data_ += data;
  ++num_tensors_;
}

std::string GgufWriter::header() const {
  return "GGUF" + le_bytes(version_) + le_bytes(num_tensors_) + le_bytes(num_metadata_) +
         metadata_ + tensor_headers_;
}

std::string GgufWriter::bytes() const {
  std::string bytes = header();
  pad(bytes, alignment_);
  return bytes + data_;
}

int64_t GgufWriter::header_bytes() const { return static_cast<int64_t>(header().size()); }

}  // namespace headwater::testing
