#include "server/api/field_reader.h"

#include <cmath>

namespace headwater::api {
namespace {

// Short enough for a message.
std::string shown(const Json& value) {
  constexpr size_t kMaxBytes = 60;
  if (value.is_structured()) return std::string("a value of type ") + value.type_name();
  std::string text = to_text(value);
  if (text.size() > kMaxBytes) text = text.substr(0, kMaxBytes) + "...";
  return text;
}

}  // namespace

const Json* FieldReader::find(const char* name) const {
  if (!status_.ok()) return nullptr;
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void FieldReader::fail(const std::string& name, const std::string& message) {
  if (status_.ok()) status_ = invalid_argument(path_ + name + " " + message, path_ + name);
}

void FieldReader::merge(const Status& nested) {
  if (status_.ok()) status_ = nested;
}

void FieldReader::read(const char* name, bool& target) {
  const Json* value = find(name);
  if (value == nullptr) return;
  if (!value->is_boolean()) return fail(name, "must be true or false, got " + shown(*value));
  target = value->get<bool>();
}

void FieldReader::read(const char* name, std::string& target) {
  const Json* value = find(name);
  if (value == nullptr) return;
  if (!value->is_string()) return fail(name, "must be a string, got " + shown(*value));
  target = value->get<std::string>();
}

void FieldReader::read(const char* name, float& target) {
  const Json* value = find(name);
  if (value == nullptr) return;
  if (!value->is_number()) return fail(name, "must be a number, got " + shown(*value));
  target = value->get<float>();
}

void FieldReader::read_ids(const char* name, size_t max_count, std::vector<int32_t>& target) {
  if (const Json* value = find(name)) to_ids(*value, name, max_count, target);
}

bool FieldReader::to_ids(const Json& list,
                         const std::string& name,
                         size_t max_count,
                         std::vector<int32_t>& target) {
  if (!list.is_array() || list.size() > max_count) {
    fail(name,
         "must be a list of at most " + std::to_string(max_count) + " token ids, got " +
             (list.is_array() ? std::to_string(list.size()) + " of them" : shown(list)));
    return false;
  }
  target.reserve(list.size());
  for (const Json& item : list) {
    int64_t id = 0;
    if (!to_integer(item, name, 0, std::numeric_limits<int32_t>::max(), id)) return false;
    target.push_back(static_cast<int32_t>(id));
  }
  return true;
}

bool FieldReader::to_integer(
    const Json& value, const std::string& name, int64_t min, int64_t max, int64_t& target) {
  bool fits = false;
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    fits = number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    target = static_cast<int64_t>(number);
  } else if (value.is_number_integer()) {
    fits = true;
    target = value.get<int64_t>();
  } else if (value.is_number_float()) {
    // 2^62: far beyond any bound here, and exact as a double.
    const auto number = value.get<double>();
    fits = std::abs(number) < 0x1p62 && std::trunc(number) == number;
    target = fits ? static_cast<int64_t>(number) : 0;
  }
  fits = fits && target >= min && target <= max;
  if (!fits) {
    fail(name,
         "must be an integer between " + std::to_string(min) + " and " + std::to_string(max) +
             ", got " + shown(value));
  }
  return fits;
}

}  // namespace headwater::api
