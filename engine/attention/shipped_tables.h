// The head tables of configs/head_tables, built into the binary: it needs no files beside it.
#pragma once

#include <span>
#include <string_view>

namespace headwater {

struct ShippedTable {
  std::string_view name;  // file name: "<model>.<method>.json"
  std::string_view json;
};

// Generated from configs/head_tables when the build is configured (engine/CMakeLists.txt).
std::span<const ShippedTable> shipped_head_tables();

}  // namespace headwater
