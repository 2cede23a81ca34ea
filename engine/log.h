// log: the one door to spdlog. One logger per area ("engine", "http", ...), lines of key=value on
// standard error. Any thread. Values that contain blanks, quotes or control characters are quoted
// and escaped, so that nothing a client sends can forge a line.
#pragma once

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

namespace headwater::log {

enum class Level { kDebug, kInfo, kWarn, kError };

struct Field {
  Field(std::string_view k, std::string_view v) : key(k), value(v) {}
  Field(std::string_view k, const std::string& v) : key(k), value(v) {}
  Field(std::string_view k, const char* v) : key(k), value(v) {}
  Field(std::string_view k, bool v) : key(k), value(v ? "true" : "false") {}
  Field(std::string_view k, std::integral auto v) : key(k), value(std::to_string(v)) {}
  Field(std::string_view k, double v);  // 4 significant digits

  std::string_view key;
  std::string value;
};

using Fields = std::initializer_list<Field>;

// name: debug, info, warn, error or off. False: unknown name, nothing changes.
bool set_level(std::string_view name);

// event: a few words in lower case ("request finished").
void write(Level level, std::string_view area, std::string_view event, Fields fields);
inline void debug(std::string_view area, std::string_view event, Fields fields = {}) {
  write(Level::kDebug, area, event, fields);
}
inline void info(std::string_view area, std::string_view event, Fields fields = {}) {
  write(Level::kInfo, area, event, fields);
}
inline void warn(std::string_view area, std::string_view event, Fields fields = {}) {
  write(Level::kWarn, area, event, fields);
}
inline void error(std::string_view area, std::string_view event, Fields fields = {}) {
  write(Level::kError, area, event, fields);
}

// The line as write() prints it after time and level; for tests.
std::string format(std::string_view area, std::string_view event, Fields fields);

}  // namespace headwater::log
