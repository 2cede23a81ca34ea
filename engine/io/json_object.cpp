#include "engine/io/json_object.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "engine/io/quote.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

using Json = nlohmann::json;

// Watches the parser's events: depth, number of values, duplicate keys of the open objects.
class LimitChecker {
 public:
  LimitChecker(const std::string& name, const JsonLimits& limits) : name_(name), limits_(limits) {}

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth >= limits_.max_depth) {
          throw LoadError(name_ + ": the JSON is nested deeper than " +
                          std::to_string(limits_.max_depth) + " levels");
        }
        keys_.emplace_back();
        count();
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        keys_.pop_back();
        break;
      case Json::parse_event_t::key:
        if (!keys_.back().insert(parsed.get_ref<const std::string&>()).second) {
          throw LoadError(name_ + ": key " + quote(parsed.get_ref<const std::string&>()) +
                          " appears twice");
        }
        break;
      case Json::parse_event_t::value:
        count();
        break;
    }
    return true;
  }

 private:
  void count() {
    if (++num_values_ > limits_.max_values) {
      throw LoadError(name_ + ": the JSON has more than " + std::to_string(limits_.max_values) +
                      " values");
    }
  }

  const std::string& name_;
  const JsonLimits& limits_;
  int64_t num_values_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;  // one per open object or array
};

// A value as it may appear in a message.
std::string describe(const Json& value) {
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  return value.dump();
}

std::optional<int64_t> in_range(const Json& value, IntRange range) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && !std::in_range<int64_t>(value.get<uint64_t>())) {
    return std::nullopt;
  }
  const auto number = value.get<int64_t>();
  if (number < range.min || number > range.max) return std::nullopt;
  return number;
}

std::string describe(IntRange range) {
  return "an integer from " + std::to_string(range.min) + " to " + std::to_string(range.max);
}

}  // namespace

Json parse_json(std::string_view text, const std::string& name, const JsonLimits& limits) {
  if (static_cast<int64_t>(text.size()) > limits.max_bytes) {
    throw LoadError(name + ": the JSON has " + std::to_string(text.size()) +
                    " bytes, expected at most " + std::to_string(limits.max_bytes));
  }
  LimitChecker checker(name, limits);
  try {
    return Json::parse(text.begin(), text.end(), std::ref(checker));
  } catch (const Json::parse_error& error) {
    throw LoadError(name + ": is not valid JSON near byte " + std::to_string(error.byte));
  } catch (const Json::exception&) {  // a number beyond double
    throw LoadError(name + ": is not valid JSON: a number is out of range");
  }
}

JsonObject::JsonObject(Json value, std::string name)
    : value_(std::make_unique<Json>(std::move(value))), name_(std::move(name)) {}
JsonObject::~JsonObject() = default;
JsonObject::JsonObject(JsonObject&&) noexcept = default;

JsonObject JsonObject::parse(std::string_view text, std::string name, const JsonLimits& limits) {
  Json value = parse_json(text, name, limits);
  if (!value.is_object()) throw LoadError(name + ": expected a JSON object");
  return {std::move(value), std::move(name)};
}

bool JsonObject::has(std::string_view key) const {
  const auto it = value_->find(key);
  return it != value_->end() && !it->is_null();
}

bool JsonObject::is_null(std::string_view key) const {
  const auto it = value_->find(key);
  return it != value_->end() && it->is_null();
}

bool JsonObject::is_list(std::string_view key) const {
  const auto it = value_->find(key);
  return it != value_->end() && it->is_array();
}

void JsonObject::fail(std::string_view key, std::string_view expected) const {
  const auto it = value_->find(key);
  const bool missing = it == value_->end();
  throw LoadError(name_ + ": key " + quote(key) + (missing ? " is missing" : " is ") +
                  (missing ? "" : describe(*it)) + ", expected " + std::string(expected));
}

const Json& JsonObject::at(std::string_view key, std::string_view expected) const {
  const auto it = value_->find(key);
  if (it == value_->end()) fail(key, expected);
  return *it;
}

int64_t JsonObject::integer(std::string_view key, IntRange range) const {
  const std::optional<int64_t> number = in_range(at(key, describe(range)), range);
  if (!number) fail(key, describe(range));
  return *number;
}

double JsonObject::number(std::string_view key) const {
  const Json& value = at(key, "a number");
  if (!value.is_number() || !std::isfinite(value.get<double>())) fail(key, "a number");
  return value.get<double>();
}

bool JsonObject::boolean(std::string_view key) const {
  const Json& value = at(key, "true or false");
  if (!value.is_boolean()) fail(key, "true or false");
  return value.get<bool>();
}

std::string JsonObject::string(std::string_view key) const {
  const Json& value = at(key, "a string");
  if (!value.is_string()) fail(key, "a string");
  return value.get<std::string>();
}

JsonObject JsonObject::object(std::string_view key) const {
  const Json& value = at(key, "an object");
  if (!value.is_object()) fail(key, "an object");
  return {value, name_ + ": " + std::string(key)};
}

std::vector<JsonObject> JsonObject::objects(std::string_view key) const {
  const Json& value = at(key, "a list of objects");
  if (!value.is_array()) fail(key, "a list of objects");
  std::vector<JsonObject> objects;
  for (const Json& element : value) {
    if (!element.is_object()) fail(key, "a list of objects");
    objects.push_back({element, name_ + ": " + std::string(key)});
  }
  return objects;
}

std::vector<int64_t> JsonObject::integers(std::string_view key, IntRange range) const {
  const std::string expected = describe(range) + " or a list of such";
  const Json& value = at(key, expected);
  std::vector<int64_t> numbers;
  for (const Json& element : value.is_array() ? value : Json::array({value})) {
    const std::optional<int64_t> number = in_range(element, range);
    if (!number) fail(key, expected);
    numbers.push_back(*number);
  }
  return numbers;
}

std::vector<double> JsonObject::numbers(std::string_view key) const {
  const Json& value = at(key, "a list of numbers");
  if (!value.is_array()) fail(key, "a list of numbers");
  std::vector<double> numbers;
  for (const Json& element : value) {
    if (!element.is_number() || !std::isfinite(element.get<double>()))
      fail(key, "a list of numbers");
    numbers.push_back(element.get<double>());
  }
  return numbers;
}

std::vector<std::string> JsonObject::strings(std::string_view key) const {
  const Json& value = at(key, "a list of strings");
  if (!value.is_array()) fail(key, "a list of strings");
  std::vector<std::string> strings;
  for (const Json& element : value) {
    if (!element.is_string()) fail(key, "a list of strings");
    strings.push_back(element.get<std::string>());
  }
  return strings;
}

int64_t JsonObject::integer_or(std::string_view key, int64_t fallback, IntRange range) const {
  return has(key) ? integer(key, range) : fallback;
}

double JsonObject::number_or(std::string_view key, double fallback) const {
  return has(key) ? number(key) : fallback;
}

bool JsonObject::boolean_or(std::string_view key, bool fallback) const {
  return has(key) ? boolean(key) : fallback;
}

std::string JsonObject::string_or(std::string_view key, std::string fallback) const {
  return has(key) ? string(key) : std::move(fallback);
}

}  // namespace headwater
