// The sources of the configuration and their order; one field list serves them all.
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "engine/config/config_check.h"
#include "kernels/base/status.h"
#include "server/config/config.h"
#include "server/config/option_table.h"

namespace headwater {
namespace {

constexpr std::string_view kEnvPrefix = "HEADWATER_";
constexpr uintmax_t kMaxFileBytes = 1 << 20;

// Variables with our prefix that other programs of this repository read (tests, build).
constexpr std::string_view kForeignVariables[] = {"HEADWATER_SHARED",
                                                  "HEADWATER_SMOLLM2",
                                                  "HEADWATER_BIN",
                                                  "HEADWATER_CUDA",
                                                  "HEADWATER_SANITIZE"};

std::string env_name(std::string_view option) {
  std::string name(kEnvPrefix);
  for (const char c : option) {
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

std::string option_name(std::string_view variable) {
  std::string name;
  for (const char c : variable.substr(kEnvPrefix.size())) {
    name += c == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return name;
}

// Kubernetes sets these for a service named "headwater" (or "headwater-..."):
// HEADWATER_PORT=tcp://..., HEADWATER_SERVICE_HOST, HEADWATER_PORT_8000_TCP_ADDR. They are not
// meant for us.
bool is_kubernetes_link(const EnvVar& var) {
  const std::string& name = var.name;
  if (name.ends_with("_SERVICE_HOST") || name.find("_SERVICE_PORT") != std::string::npos) {
    return true;
  }
  const size_t port = name.find("_PORT_");
  if (port != std::string::npos && port + 6 < name.size() &&
      std::isdigit(static_cast<unsigned char>(name[port + 6]))) {
    return true;
  }
  return name.ends_with("_PORT") && var.value.find("://") != std::string::npos;
}

class Loader {
 public:
  Loader() {
    describe_engine(config_.engine, table_);
    describe_server(config_.server, table_);
    for (const Option& option : table_.options()) sources_[option.name] = "default";
  }

  void read_file(const std::string& path) {
    std::error_code error;
    const uintmax_t size = std::filesystem::file_size(path, error);
    if (error) {
      issues_.push_back("config file " + path + ": cannot be read (" + error.message() + ")");
      return;
    }
    if (size > kMaxFileBytes) {
      issues_.push_back("config file " + path + ": must be at most 1 MiB, is " +
                        std::to_string(size) + " bytes");
      return;
    }
    try {
      read_root(path, YAML::LoadFile(path));
    } catch (const YAML::Exception& e) {
      issues_.push_back(path + ":" + std::to_string(e.mark.line + 1) + ": not YAML: " + e.msg);
    }
  }

  void read_env(const std::vector<EnvVar>& env) {
    for (const EnvVar& var : env) {
      if (!var.name.starts_with(kEnvPrefix) || var.name == env_name("config")) continue;
      if (std::ranges::find(kForeignVariables, var.name) != std::end(kForeignVariables)) continue;
      if (is_kubernetes_link(var)) continue;
      const Option* option = table_.find(option_name(var.name));
      if (option == nullptr) {
        const std::string near = table_.nearest(option_name(var.name));
        issues_.push_back("unknown environment variable " + var.name +
                          (near.empty() ? "" : ", did you mean " + env_name(near) + "?"));
        continue;
      }
      set(*option, var.value, "environment variable " + var.name, "environment");
    }
  }

  void read_flags(const ParsedFlags& flags) {
    issues_.insert(issues_.end(), flags.issues.begin(), flags.issues.end());
    for (const auto& [option, value] : flags.values) {
      if (option->name != "config")
        set(*table_.find(option->name), value, "--" + option->name, "flag");
    }
    if (flags.positional.size() > 1) {
      issues_.push_back("one model is served, got a second word: \"" + flags.positional[1] + "\"");
    } else if (flags.positional.size() == 1) {
      set(*table_.find("model"), flags.positional[0], "MODEL", "flag");
    }
  }

  LoadedConfig finish() {
    // The bounds say nothing new about a value that could not be read.
    if (issues_.empty()) {
      for (const auto& check :
           {check_engine_config(config_.engine), check_server_config(config_.server)}) {
        for (const std::string& issue : check) issues_.push_back(issue + with_source(issue));
      }
    }
    if (!issues_.empty()) {
      std::string all;
      for (const std::string& issue : issues_) all += (all.empty() ? "" : "\n") + issue;
      throw ConfigError(all);
    }
    return {config_, resolved()};
  }

 private:
  void read_root(const std::string& path, const YAML::Node& root) {
    if (root.IsNull()) return;
    if (!root.IsMap()) {
      issues_.push_back(path + ": must be a map of options such as \"port: 8000\"");
      return;
    }
    std::map<std::string, int> first_line;
    for (const auto& entry : root) {
      const int line = entry.first.Mark().line + 1;
      const std::string where = path + ":" + std::to_string(line);
      if (!entry.first.IsScalar()) {
        issues_.push_back(where + ": a key must be the name of an option");
        continue;
      }
      const std::string key = entry.first.Scalar();
      const Option* option = table_.find(key);
      if (option == nullptr) {
        const std::string near = table_.nearest(key);
        issues_.push_back(where + ": unknown key " + key +
                          (near.empty() ? "" : ", did you mean " + near + "?"));
        continue;
      }
      if (const auto [seen, is_new] = first_line.emplace(key, line); !is_new) {
        issues_.push_back(where + ": " + key + " was set before, in line " +
                          std::to_string(seen->second));
        continue;
      }
      if (!entry.second.IsScalar() && !entry.second.IsNull()) {
        issues_.push_back(where + ": " + key + " must be one value");
        continue;
      }
      set(*option, entry.second.IsNull() ? "" : entry.second.Scalar(), where + ": " + key, path);
    }
  }

  void set(const Option& option,
           const std::string& value,
           const std::string& where,
           const std::string& source) {
    const std::string expected = option.set(value);
    if (expected.empty()) {
      sources_[option.name] = source;
    } else {
      issues_.push_back(where + ": must be " + expected + ", got \"" + value + "\"");
    }
  }

  // "  (set by ...)" for an issue that begins with an option's name.
  std::string with_source(const std::string& issue) const {
    const auto source = sources_.find(issue.substr(0, issue.find(':')));
    if (source == sources_.end() || source->second == "default") return "";
    return " (set by " + source->second + ")";
  }

  std::vector<std::string> resolved() const {
    size_t width = 0;
    for (const Option& option : table_.options()) width = std::max(width, option.name.size());
    std::vector<std::string> lines;
    for (const Option& option : table_.options()) {
      std::string value = option.get();
      if (option.name == "api-key" && !value.empty()) value = "(set)";
      if (value.empty()) value = "\"\"";
      const std::string pad(width - option.name.size(), ' ');
      lines.push_back(option.name + pad + " = " + value + "  (" + sources_.at(option.name) + ")");
    }
    return lines;
  }

  Config config_;
  OptionTable table_;
  std::map<std::string, std::string> sources_;
  std::vector<std::string> issues_;
};

}  // namespace

LoadedConfig load_config(const std::vector<std::string>& args, const std::vector<EnvVar>& env) {
  // The file is the weakest source, but only the flags and the environment name it.
  Config scratch;
  std::string path;
  OptionTable flag_table;
  describe_engine(scratch.engine, flag_table);
  describe_server(scratch.server, flag_table);
  flag_table("config", path, "YAML file with options");
  const ParsedFlags flags = parse_flags(flag_table, args);
  for (const EnvVar& var : env) {
    if (var.name == env_name("config")) path = var.value;
  }
  for (const auto& [option, value] : flags.values) {
    if (option->name == "config") path = value;
  }

  Loader loader;
  if (!path.empty()) loader.read_file(path);
  loader.read_env(env);
  loader.read_flags(flags);
  return loader.finish();
}

}  // namespace headwater
