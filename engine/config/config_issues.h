// ConfigIssues collects what is wrong with a configuration, so that all of it is said at once.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace headwater {

class ConfigIssues {
 public:
  void add(std::string issue) { found_.push_back(std::move(issue)); }

  void range(const char* option, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return;
    add(std::string(option) + ": must be between " + std::to_string(low) + " and " +
        std::to_string(high) + ", got " + std::to_string(value));
  }

  void one_of(const char* option,
              const std::string& value,
              std::initializer_list<std::string_view> allowed) {
    std::string list;
    for (const std::string_view name : allowed) {
      if (name == value) return;
      if (!list.empty()) list += ", ";
      list += name;
    }
    add(std::string(option) + ": must be one of " + list + ", got \"" + value + "\"");
  }

  std::vector<std::string> take() { return std::exchange(found_, {}); }

 private:
  std::vector<std::string> found_;
};

}  // namespace headwater
