// Builds safetensors files for tests, right ones and, by hand-written headers, wrong ones.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace headwater::testing {

// Length, header and data buffer as one file.
std::string safetensors_bytes(std::string_view header, std::string_view data);

class SafetensorsWriter {
 public:
  void add_tensor(const std::string& name,
                  const std::string& dtype,
                  const std::vector<int64_t>& shape,
                  std::string_view data);
  std::string bytes() const;

 private:
  std::string entries_;
  std::string data_;
};

}  // namespace headwater::testing
