// JsonObject: a JSON file's object with typed access; every refusal names file, key, what was
// expected and what was found. Parsing is bounded in bytes, depth and number of values, and
// refuses duplicate keys.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/int_range.h"

namespace headwater {

struct JsonLimits {
  int64_t max_bytes = 16 << 20;
  int max_depth = 32;
  int64_t max_values = 1 << 20;
};

// name is for messages. Throws LoadError.
nlohmann::json parse_json(std::string_view text,
                          const std::string& name,
                          const JsonLimits& limits = {});

class JsonObject {
 public:
  // Throws LoadError when text is not a JSON object.
  static JsonObject parse(std::string_view text, std::string name, const JsonLimits& limits = {});
  ~JsonObject();
  JsonObject(JsonObject&&) noexcept;

  const std::string& name() const { return name_; }  // file and path of keys, for messages
  const nlohmann::json& value() const { return *value_; }
  bool has(std::string_view key) const;      // present and not null
  bool is_null(std::string_view key) const;  // present and null
  bool is_list(std::string_view key) const;

  int64_t integer(std::string_view key, IntRange range = {}) const;
  double number(std::string_view key) const;
  bool boolean(std::string_view key) const;
  std::string string(std::string_view key) const;
  JsonObject object(std::string_view key) const;
  std::vector<JsonObject> objects(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key, IntRange range = {}) const;  // or a scalar
  std::vector<double> numbers(std::string_view key) const;
  std::vector<std::string> strings(std::string_view key) const;

  // The fallback is for an absent key or null; a value of another type is still refused.
  int64_t integer_or(std::string_view key, int64_t fallback, IntRange range = {}) const;
  double number_or(std::string_view key, double fallback) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  std::string string_or(std::string_view key, std::string fallback) const;

 private:
  JsonObject(nlohmann::json value, std::string name);
  const nlohmann::json& at(std::string_view key, std::string_view expected) const;
  [[noreturn]] void fail(std::string_view key, std::string_view expected) const;

  std::unique_ptr<nlohmann::json> value_;
  std::string name_;
};

}  // namespace headwater
