// OptionTable: the fields of a described struct as named, typed, settable options. It is the
// visitor that describe_*() functions are called with; every command of the program parses its
// flags here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace headwater {

struct Option {
  std::string name;  // "max-model-len"
  std::string help;
  std::string value_name;  // "N", "PATH", ...; "" for a switch
  std::string default_value;
  bool is_switch = false;  // --name, --no-name
  // Returns "" or what a value has to be ("a whole number"); on an error nothing changes.
  std::function<std::string(std::string_view)> set;
  std::function<std::string()> get;
};

class OptionTable {
 public:
  // The field is not owned and must outlive the table.
  void operator()(const char* name, std::string& field, const char* help);
  void operator()(const char* name, bool& field, const char* help);
  void operator()(const char* name, int32_t& field, const char* help);
  void operator()(const char* name, int64_t& field, const char* help);  // "-bytes": 512M, 2GiB
  void operator()(const char* name, uint64_t& field, const char* help);
  void operator()(const char* name, double& field, const char* help);

  const Option* find(std::string_view name) const;
  // The known name closest to this one; "" if none is close.
  std::string nearest(std::string_view name) const;
  const std::vector<Option>& options() const { return options_; }

 private:
  std::vector<Option> options_;
};

struct FlagValue {
  const Option* option;
  std::string value;
};

struct ParsedFlags {
  std::vector<FlagValue> values;  // in order; nothing is set yet
  std::vector<std::string> positional;
  std::vector<std::string> issues;
};

// --name value, --name=value, --switch [true|false], --no-switch; "--" ends the flags.
ParsedFlags parse_flags(const OptionTable& table, const std::vector<std::string>& args);

// For commands that have flags only: parses, sets, throws ConfigError with every issue. Returns the
// positional words.
std::vector<std::string> apply_flags(const OptionTable& table,
                                     const std::vector<std::string>& args);

struct OptionGroup {
  std::string title;
  std::vector<std::string> names;
};

// The groups with one option a line: flag, meaning, default. Every name must be in the table.
std::string format_options(const OptionTable& table, const std::vector<OptionGroup>& groups);

// True if --help or -h is among the words.
bool wants_help(const std::vector<std::string>& args);

}  // namespace headwater
