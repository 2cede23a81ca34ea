#include "tests/support/safetensors_writer.h"

#include "tests/support/gguf_writer.h"

namespace headwater::testing {

std::string safetensors_bytes(std::string_view header, std::string_view data) {
  return le_bytes<uint64_t>(header.size()) + std::string(header) + std::string(data);
}

void SafetensorsWriter::add_tensor(const std::string& name,
                                   const std::string& dtype,
                                   const std::vector<int64_t>& shape,
                                   std::string_view data) {
  std::string sizes;
  for (const int64_t size : shape) {
    if (!sizes.empty()) sizes += ',';
    sizes += std::to_string(size);
  }
  const std::string end = std::to_string(data_.size() + data.size());
  if (!entries_.empty()) entries_ += ',';
  entries_ += '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":[)" + sizes;
  entries_ += "],\"data_offsets\":[" + std::to_string(data_.size()) + "," + end + "]}";
  data_ += data;
}

std::string SafetensorsWriter::bytes() const {
  std::string header = "{" + entries_ + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return safetensors_bytes(header, data_);
}

}  // namespace headwater::testing
