#include "server/config/option_table.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>
#include <optional>
#include <system_error>

#include "kernels/base/check.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

template <typename Number>
std::optional<Number> parse_number(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "2G", "512MiB", "4096": binary units.
std::optional<int64_t> parse_bytes(std::string_view text) {
  int64_t unit = 1;
  for (const std::string_view suffix : {"iB", "B"}) {
    if (text.ends_with(suffix)) {
      text.remove_suffix(suffix.size());
      break;
    }
  }
  constexpr std::string_view kUnits = "KMGT";
  if (!text.empty()) {
    if (const size_t power = kUnits.find(text.back()); power != std::string_view::npos) {
      unit = int64_t{1} << (10 * (power + 1));
      text.remove_suffix(1);
    }
  }
  const auto value = parse_number<int64_t>(text);
  if (!value || *value > std::numeric_limits<int64_t>::max() / unit ||
      *value < std::numeric_limits<int64_t>::min() / unit) {
    return std::nullopt;
  }
  return *value * unit;
}

std::optional<bool> parse_bool(std::string_view text) {
  for (const std::string_view yes : {"true", "1", "yes", "on"}) {
    if (text == yes) return true;
  }
  for (const std::string_view no : {"false", "0", "no", "off"}) {
    if (text == no) return false;
  }
  return std::nullopt;
}

std::string number_text(double value) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, value);
  return error == std::errc() ? std::string(text, end) : std::string();
}

template <typename T, typename Parse, typename Print>
Option make_option(
    const char* name, T& field, const char* help, const char* expected, Parse parse, Print print) {
  Option option;
  option.name = name;
  option.help = help;
  option.get = [&field, print] { return print(field); };
  option.set = [&field, expected, parse](std::string_view text) -> std::string {
    auto value = parse(text);
    if (!value) return expected;
    field = *std::move(value);
    return "";
  };
  option.default_value = option.get();
  return option;
}

template <typename Number>
Option number_option(const char* name, Number& field, const char* help, const char* expected) {
  Option option = make_option(name, field, help, expected, parse_number<Number>, [](Number value) {
    return std::to_string(value);
  });
  option.value_name = "N";
  return option;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substitute = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substitute, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string wrap(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  size_t start = 0;
  while (start < text.size()) {
    const size_t end = std::min(text.find(' ', start), text.size());
    const size_t length = end - start;
    if (column > indent && column + 1 + length > width) {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += text.substr(start, length);
    column += length;
    start = end + 1;
  }
  return out;
}

}  // namespace

void OptionTable::operator()(const char* name, std::string& field, const char* help) {
  Option option = make_option(
      name,
      field,
      help,
      "text",
      [](std::string_view text) { return std::optional(std::string(text)); },
      [](const std::string& value) { return value; });
  option.value_name = "TEXT";
  options_.push_back(std::move(option));
}

void OptionTable::operator()(const char* name, bool& field, const char* help) {
  Option option = make_option(name, field, help, "true or false", parse_bool, [](bool value) {
    return std::string(value ? "true" : "false");
  });
  option.is_switch = true;
  options_.push_back(std::move(option));
}

void OptionTable::operator()(const char* name, int32_t& field, const char* help) {
  options_.push_back(number_option(name, field, help, "a whole number below 2^31"));
}

void OptionTable::operator()(const char* name, int64_t& field, const char* help) {
  if (std::string_view(name).ends_with("-bytes")) {
    Option option = make_option(name,
                                field,
                                help,
                                "a number of bytes such as 4096, 512M or 2GiB",
                                parse_bytes,
                                [](int64_t value) { return std::to_string(value); });
    option.value_name = "BYTES";
    options_.push_back(std::move(option));
    return;
  }
  options_.push_back(number_option(name, field, help, "a whole number"));
}

void OptionTable::operator()(const char* name, uint64_t& field, const char* help) {
  options_.push_back(number_option(name, field, help, "a whole number, not negative"));
}

void OptionTable::operator()(const char* name, double& field, const char* help) {
  Option option = make_option(name, field, help, "a number", parse_number<double>, number_text);
  option.value_name = "X";
  options_.push_back(std::move(option));
}

const Option* OptionTable::find(std::string_view name) const {
  const auto found = std::find_if(
      options_.begin(), options_.end(), [&](const Option& option) { return option.name == name; });
  return found == options_.end() ? nullptr : &*found;
}

std::string OptionTable::nearest(std::string_view name) const {
  constexpr size_t kLongestName = 64;
  if (name.size() > kLongestName) return "";
  const Option* best = nullptr;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const Option& option : options_) {
    const size_t distance = edit_distance(name, option.name);
    if (distance < best_distance) {
      best_distance = distance;
      best = &option;
    }
  }
  return best == nullptr ? "" : best->name;
}

ParsedFlags parse_flags(const OptionTable& table, const std::vector<std::string>& args) {
  ParsedFlags parsed;
  bool flags_ended = false;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& word = args[i];
    if (flags_ended || word.size() < 2 || word[0] != '-') {
      parsed.positional.push_back(word);
      continue;
    }
    if (word == "--") {
      flags_ended = true;
      continue;
    }
    const size_t equals = word.find('=');
    const size_t dashes = word.starts_with("--") ? 2 : 1;
    const std::string name = word.substr(0, equals).substr(dashes);
    const Option* option = dashes == 2 ? table.find(name) : nullptr;
    if (option == nullptr && word.starts_with("--no-") && equals == std::string::npos) {
      const Option* negated = table.find(std::string_view(name).substr(3));
      if (negated != nullptr && negated->is_switch) {
        parsed.values.push_back({negated, "false"});
        continue;
      }
    }
    if (option == nullptr) {
      const std::string near = table.nearest(name);
      parsed.issues.push_back("unknown flag " + word.substr(0, equals) +
                              (near.empty() ? "" : ", did you mean --" + near + "?"));
      continue;
    }
    if (equals != std::string::npos) {
      parsed.values.push_back({option, word.substr(equals + 1)});
    } else if (option->is_switch) {
      const bool has_value =
          i + 1 < args.size() && (args[i + 1] == "true" || args[i + 1] == "false");
      parsed.values.push_back({option, has_value ? args[++i] : "true"});
    } else if (i + 1 < args.size()) {
      parsed.values.push_back({option, args[++i]});
    } else {
      parsed.issues.push_back("--" + name + ": a value must follow (" + option->value_name + ")");
    }
  }
  return parsed;
}

std::vector<std::string> apply_flags(const OptionTable& table,
                                     const std::vector<std::string>& args) {
  ParsedFlags parsed = parse_flags(table, args);
  for (const auto& [option, value] : parsed.values) {
    const std::string expected = option->set(value);
    if (!expected.empty()) {
      parsed.issues.push_back("--" + option->name + ": must be " + expected + ", got \"" + value +
                              "\"");
    }
  }
  std::string all;
  for (const std::string& issue : parsed.issues) all += (all.empty() ? "" : "\n") + issue;
  if (!all.empty()) throw ConfigError(all);
  return std::move(parsed.positional);
}

std::string format_options(const OptionTable& table, const std::vector<OptionGroup>& groups) {
  constexpr size_t kHelpColumn = 34;
  constexpr size_t kWidth = 100;
  std::string out;
  for (const OptionGroup& group : groups) {
    out += "\n" + group.title + "\n";
    for (const std::string& name : group.names) {
      const Option* option = table.find(name);
      HW_CHECK(option != nullptr, "help names an unknown option", name);
      const bool turns_off = option->is_switch && option->default_value == "true";
      std::string line = std::string("  --") + (turns_off ? "[no-]" : "") + name;
      if (!option->value_name.empty()) line += " " + option->value_name;
      if (line.size() + 2 > kHelpColumn) {
        out += line + "\n";
        line.clear();
      }
      line.resize(kHelpColumn, ' ');
      std::string help = option->help;
      if (option->is_switch) {
        if (turns_off) help += " [on]";
      } else if (!option->default_value.empty()) {
        help += " [" + option->default_value + "]";
      }
      out += line + wrap(help, kHelpColumn, kWidth) + "\n";
    }
  }
  return out;
}

bool wants_help(const std::vector<std::string>& args) {
  const auto end = std::find(args.begin(), args.end(), "--");
  return std::any_of(
      args.begin(), end, [](const std::string& word) { return word == "--help" || word == "-h"; });
}

}  // namespace headwater
