#include "tests/support/gguf_writer.h"

#include <span>
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

void GgufWriter::add_copy(std::string_view key, const GgufValue& value) {
  const std::string data(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
  if (!value.is_array) return add_raw(key, value.type, data);
  add_raw(key,
          GgufType::kArray,
          le_bytes(static_cast<int32_t>(value.type)) +
              le_bytes(static_cast<uint64_t>(value.count)) + data);
}

void GgufWriter::add_copy(const GgufTensor& tensor) {
  add_tensor(tensor.name,
             std::span(tensor.ne).first(static_cast<size_t>(tensor.num_dims)),
             tensor.type->id,
             {reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size()});
}

std::string with_u32(const std::string& bytes, std::string_view key, uint32_t value) {
  const GgufFile file = GgufFile::parse(std::as_bytes(std::span(bytes)), "whole");
  GgufWriter out;
  for (const auto& [name, old] : file.metadata()) out.add_copy(name, old);
  out.add_u32(key, value);
  for (const GgufTensor& tensor : file.tensors()) out.add_copy(tensor);
  return out.bytes();
}

std::vector<std::string> split_gguf(const std::string& bytes, int num_parts) {
  const GgufFile file = GgufFile::parse(std::as_bytes(std::span(bytes)), "whole");
  std::vector<GgufWriter> parts(static_cast<size_t>(num_parts));
  for (const auto& [key, value] : file.metadata()) parts[0].add_copy(key, value);
  const auto num_tensors = static_cast<int32_t>(file.tensors().size());
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i].add_raw("split.no", GgufType::kU16, le_bytes(static_cast<uint16_t>(i)));
    parts[i].add_raw("split.count", GgufType::kU16, le_bytes(static_cast<uint16_t>(num_parts)));
    parts[i].add_raw("split.tensors.count", GgufType::kI32, le_bytes(num_tensors));
  }
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    parts[i * parts.size() / file.tensors().size()].add_copy(file.tensors()[i]);
  }
  std::vector<std::string> files;
  for (const GgufWriter& part : parts) files.push_back(part.bytes());
  return files;
}

}  // namespace headwater::testing
