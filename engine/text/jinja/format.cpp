// Above 400 lines: both ways share the mini-language of specs.
// Python's two ways to write values into a text: format % values and text.format(...).
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/operators.h"
#include "engine/text/jinja/text.h"

namespace headwater::jinja {
namespace {

constexpr int64_t kMaxWidth = 4096;

// [[fill]align][sign][#][0][width][,][.precision][type], the parts both ways share.
struct Spec {
  std::string fill = " ";
  char align = 0;  // '<', '>', '^', '=' or none
  char sign = '-';
  bool alternate = false, zero = false, comma = false;
  int64_t width = 0, precision = -1;
  char type = 0;
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int64_t take_number(std::string_view& s) {
  int64_t value = 0;
  while (!s.empty() && is_digit(s[0])) {
    value = value * 10 + (s[0] - '0');
    if (value > kMaxWidth) throw RenderError("a width or precision is too large");
    s.remove_prefix(1);
  }
  return value;
}

std::string with_commas(std::string digits) {
  const size_t end = std::min(digits.find('.'), digits.size());
  for (size_t i = end; i > 3; i -= 3) digits.insert(i - 3, ",");
  return digits;
}

// The digits of a number without its sign.
std::string digits_of(const Value& value, const Spec& spec) {
  const char type = spec.type;
  std::array<char, 512> buffer;
  const auto write = [&](auto... arguments) {
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), arguments...).ptr;
    return std::string(buffer.data(), end);
  };
  const bool is_whole = type == 'd' || type == 'i' || type == 'u' || type == 'x' || type == 'X' ||
                        type == 'o' || type == 'b' || (type == 0 && value.is_integral());
  if (is_whole) {
    const int64_t i = value.integer();
    const uint64_t size = i < 0 ? 0 - static_cast<uint64_t>(i) : static_cast<uint64_t>(i);
    const int base = type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
    std::string out = write(size, base);
    if (spec.alternate && base != 10) {
      out.insert(0, base == 16 ? "0x" : base == 8 ? "0o" : "0b");
    }
    if (type == 'X')
      std::ranges::transform(out, out.begin(), [](char c) {
        return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c;
      });
    return out;
  }
  double d = std::fabs(value.number());
  if (std::isnan(d) || std::isinf(d)) return std::isnan(d) ? "nan" : "inf";
  if (type == '%') d *= 100;
  const int precision =
      spec.precision < 0 ? 6 : static_cast<int>(std::min<int64_t>(spec.precision, 60));
  std::string out;
  if (type == 'f' || type == 'F' || type == '%') {
    if (d > 1e300) throw RenderError("a number is too large for this format");
    out = write(d, std::chars_format::fixed, precision);
    if (type == '%') out += '%';
  } else if (type == 'e' || type == 'E') {
    out = write(d, std::chars_format::scientific, precision);
  } else if (type == 'g' || type == 'G' || spec.precision >= 0) {
    out = write(d, std::chars_format::general, std::max(precision, 1));
  } else {
    out = text::float_repr(d);
  }
  if (type == 'E' || type == 'G') std::ranges::replace(out, 'e', 'E');
  return out;
}

std::string padded(const std::string& sign, std::string body, const Spec& spec, char align) {
  const auto size = static_cast<int64_t>(text::length(sign) + text::length(body));
  const int64_t space = std::max<int64_t>(spec.width - size, 0);
  const int64_t left = align == '<' ? 0 : align == '^' ? space / 2 : space;
  std::string before, after;
  for (int64_t i = 0; i < left; ++i) before += spec.fill;
  for (int64_t i = left; i < space; ++i) after += spec.fill;
  return align == '=' ? sign + before + body : before + sign + body + after;
}

std::string formatted_number(const Value& value, const Spec& spec) {
  const bool negative = value.is_float() ? std::signbit(value.number()) : value.integer() < 0;
  std::string body = digits_of(value, spec);
  if (spec.comma) body = with_commas(std::move(body));
  const std::string sign = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  return padded(sign, std::move(body), spec, spec.align != 0 ? spec.align : '>');
}

std::string formatted_text(std::string s, const Spec& spec) {
  if (spec.precision >= 0) s.resize(text::byte_offset(s, static_cast<size_t>(spec.precision)));
  return padded("", std::move(s), spec, spec.align != 0 ? spec.align : '<');
}

// The mini-language of format().
Spec parse_spec(std::string_view s) {
  Spec spec;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  const size_t first = s.empty() ? 0 : utf8::next(s, 0).length;
  if (first < s.size() && is_align(s[first])) {
    spec.fill = s.substr(0, first);
    spec.align = s[first];
    s.remove_prefix(first + 1);
  } else if (!s.empty() && is_align(s[0])) {
    spec.align = s[0];
    s.remove_prefix(1);
  }
  const auto take = [&](char c) {
    if (s.empty() || s[0] != c) return false;
    s.remove_prefix(1);
    return true;
  };
  for (const char sign : {'+', '-', ' '}) {
    if (take(sign)) {
      spec.sign = sign;
      break;
    }
  }
  spec.alternate = take('#');
  if (take('0') && spec.align == 0) {
    spec.fill = "0";
    spec.align = '=';
  }
  spec.width = take_number(s);
  spec.comma = take(',');
  if (take('.')) {
    if (s.empty() || !is_digit(s[0])) throw RenderError("Format specifier missing precision");
    spec.precision = take_number(s);
  }
  if (!s.empty()) {
    spec.type = s[0];
    s.remove_prefix(1);
  }
  if (!s.empty()) throw RenderError("Invalid format specifier");
  return spec;
}

std::string formatted(Runtime& runtime, const Value& value, std::string_view text_spec) {
  if (text_spec.empty()) return value.str(runtime);
  const Spec spec = parse_spec(text_spec);
  constexpr std::string_view kWhole = "dxXob", kReal = "eEfFgG%";
  const auto unknown = [&] {
    return RenderError("Unknown format code '" + std::string(1, spec.type) +
                       "' for object of type '" + std::string(value.type_name()) + "'");
  };
  if (value.is_string()) {
    if ((spec.type != 0 && spec.type != 's') || spec.align == '=' || spec.sign != '-' ||
        spec.comma) {
      throw unknown();
    }
    return formatted_text(value.string(), spec);
  }
  if (!value.is_number())
    throw RenderError("unsupported format string passed to " + std::string(value.type_name()) +
                      ".__format__");
  if (value.is_bool() && spec.type == 0) return formatted_text(value.str(runtime), spec);
  const bool known = spec.type == 0 || kReal.find(spec.type) != std::string_view::npos ||
                     (kWhole.find(spec.type) != std::string_view::npos && value.is_integral());
  if (!known || (spec.precision >= 0 && value.is_integral() &&
                 kReal.find(spec.type) == std::string_view::npos)) {
    throw unknown();
  }
  return formatted_number(value, spec);
}

}  // namespace

std::string percent_format(Runtime& runtime, std::string_view format, const Value& values) {
  const bool many = values.is_list() && values.list().is_tuple();
  bool by_name = false;
  size_t next = 0;
  const auto take = [&]() -> Value {
    if (many ? next >= values.list().items.size() : next > 0) {
      throw RenderError("not enough arguments for format string");
    }
    return many ? values.list().items[next++] : (++next, values);
  };
  std::string out;
  while (!format.empty()) {
    const size_t percent = std::min(format.find('%'), format.size());
    out.append(format.substr(0, percent));
    format.remove_prefix(percent);
    if (format.empty()) break;
    format.remove_prefix(1);
    std::optional<Value> named;
    if (format.starts_with('(')) {
      const size_t end = format.find(')');
      if (end == std::string_view::npos) throw RenderError("incomplete format key");
      if (!values.is_dict()) throw RenderError("format requires a mapping");
      const Value* value = values.dict().find(format.substr(1, end - 1));
      if (value == nullptr) throw RenderError("the format's key is not in the mapping");
      named = *value;
      by_name = true;
      format.remove_prefix(end + 1);
    }
    Spec spec;
    while (!format.empty() && std::string_view("#0- +").find(format[0]) != std::string_view::npos) {
      const char flag = format[0];
      if (flag == '#') spec.alternate = true;
      if (flag == '0') spec.zero = true;
      if (flag == '-') spec.align = '<';
      if (flag == '+' || (flag == ' ' && spec.sign != '+')) spec.sign = flag;
      format.remove_prefix(1);
    }
    if (format.starts_with('*')) throw RenderError("a width of * is not supported");
    spec.width = take_number(format);
    if (format.starts_with('.')) {
      format.remove_prefix(1);
      spec.precision = take_number(format);
    }
    while (!format.empty() && std::string_view("hlL").find(format[0]) != std::string_view::npos) {
      format.remove_prefix(1);
    }
    if (format.empty()) throw RenderError("incomplete format");
    const char type = format[0];
    format.remove_prefix(1);
    if (type == '%') {
      out += '%';
      continue;
    }
    const Value value = named ? *named : take();
    const char align = spec.align != 0 ? spec.align : '>';
    if (type == 's' || type == 'r') {
      std::string body;
      type == 's' ? value.append_str(runtime, body) : value.append_repr(runtime, body, 1);
      spec.align = align;
      out += formatted_text(std::move(body), spec);
    } else if (type == 'c') {
      std::string body;
      if (value.is_string() && text::length(value.string()) == 1) {
        body = value.string();
      } else if (value.is_integral() && value.integer() >= 0 && value.integer() < 0x110000) {
        utf8::append(body, static_cast<char32_t>(value.integer()));
      } else {
        throw RenderError("%c requires int or char");
      }
      spec.align = align;
      out += formatted_text(std::move(body), spec);
    } else if (std::string_view("diuxXoeEfFgG").find(type) != std::string_view::npos) {
      const bool whole = std::string_view("diuxXo").find(type) != std::string_view::npos;
      if (!value.is_number() ||
          (whole && value.is_float() && type != 'd' && type != 'i' && type != 'u')) {
        throw RenderError("%" + std::string(1, type) + " format: a number is required, not " +
                          std::string(value.type_name()));
      }
      spec.type = type;
      if (spec.zero && spec.align == 0) {
        spec.fill = "0";
        spec.align = '=';
      }
      const bool cut = whole && value.is_float();
      if (cut && !(std::fabs(value.number()) < 9.2e18)) throw RenderError("a number is too large");
      Value number = cut ? Value::of(static_cast<int64_t>(value.number())) : value;
      if (!whole) number = Value::of(value.number());
      if (whole && spec.precision > 0) {  // at least so many digits
        Spec digits;
        digits.type = type;
        std::string body = digits_of(number, digits);
        while (static_cast<int64_t>(body.size()) < spec.precision) body.insert(0, "0");
        out += padded(number.integer() < 0 ? "-"
                      : spec.sign == '-'   ? ""
                                           : std::string(1, spec.sign),
                      std::move(body),
                      spec,
                      align);
      } else {
        out += formatted_number(number, spec);
      }
    } else {
      throw RenderError("unsupported format character '" + std::string(1, type) + "'");
    }
    runtime.charge(1 + out.size() / 32);
  }
  if (!by_name && (many ? next < values.list().items.size()
                        : next == 0 && !values.is_dict() && !values.is_list())) {
    throw RenderError("not all arguments converted during string formatting");
  }
  return out;
}

// {}, {0}, {name}, each with .attribute and [key], !r or !s, and :spec, which may hold {} itself.
std::string brace_format(Runtime& runtime,
                         std::string_view format,
                         const Arguments& arguments,
                         size_t* next,
                         int depth) {
  size_t first = 0;
  if (next == nullptr) next = &first;
  if (depth > 2) throw RenderError("Max string recursion exceeded");
  constexpr size_t kByNumber = ~size_t{0};
  std::string out;
  const auto field = [&](std::string_view content) {
    std::string_view name = content.substr(0, content.find_first_of("!:"));
    // A key in brackets may hold both.
    if (const size_t open = name.find('['); open != std::string_view::npos) {
      const size_t close = content.find(']', open);
      const size_t end =
          close == std::string_view::npos ? close : content.find_first_of("!:", close);
      name = content.substr(0, end);
    }
    std::string_view rest = content.substr(name.size());
    char conversion = 0;
    if (rest.starts_with('!')) {
      if (rest.size() < 2 || (rest.size() > 2 && rest[2] != ':')) {
        throw RenderError("expected ':' after conversion specifier");
      }
      conversion = rest[1];
      rest.remove_prefix(2);
    }
    if (rest.starts_with(':')) rest.remove_prefix(1);
    const std::string spec = brace_format(runtime, rest, arguments, next, depth + 1);

    const std::string_view head = name.substr(0, name.find_first_of(".["));
    Value value;
    if (head.empty() || std::ranges::all_of(head, is_digit)) {
      size_t index = 0;
      if (head.empty()) {
        if (*next == kByNumber) {
          throw RenderError("cannot switch from manual field specification to automatic");
        }
        index = (*next)++;
      } else {
        if (*next != 0 && *next != kByNumber) {
          throw RenderError("cannot switch from automatic field numbering to manual");
        }
        *next = kByNumber;
        std::string_view digits = head;
        index = static_cast<size_t>(take_number(digits));
      }
      if (index >= arguments.positional.size()) {
        throw RenderError("Replacement index " + std::to_string(index) + " out of range");
      }
      value = arguments.positional[index];
    } else {
      const auto named =
          std::ranges::find_if(arguments.named, [&](const auto& a) { return a.first == head; });
      if (named == arguments.named.end()) {
        throw RenderError("format: no argument '" + std::string(head) + "'");
      }
      value = named->second;
    }
    for (std::string_view path = name.substr(head.size()); !path.empty();) {
      if (path[0] == '.') {
        const std::string_view step = path.substr(1, path.find_first_of(".[", 1) - 1);
        value = get_attribute(runtime, value, step);
        path.remove_prefix(1 + step.size());
      } else {
        const size_t close = path.find(']');
        if (close == std::string_view::npos) throw RenderError("Missing ']' in format string");
        std::string_view key = path.substr(1, close - 1);
        const bool index = !key.empty() && std::ranges::all_of(key, is_digit);
        value = get_item(
            runtime, value, index ? Value::of(take_number(key)) : Value::of(std::string(key)));
        path.remove_prefix(close + 1);
      }
    }
    if (conversion == 'r') {
      std::string repr;
      value.append_repr(runtime, repr, 1);
      value = runtime.text(std::move(repr));
    } else if (conversion == 's') {
      value = runtime.text(value.str(runtime));
    } else if (conversion != 0) {
      throw RenderError("Unknown conversion specifier");
    }
    out += formatted(runtime, value, spec);
  };
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    if ((c == '{' || c == '}') && i + 1 < format.size() && format[i + 1] == c) {
      out += format[i++];
    } else if (c == '{') {
      size_t end = i + 1;
      for (int open = 1; end < format.size(); ++end) {
        open += format[end] == '{' ? 1 : format[end] == '}' ? -1 : 0;
        if (open == 0) break;
      }
      if (end >= format.size()) throw RenderError("expected '}' before end of string");
      field(format.substr(i + 1, end - i - 1));
      runtime.charge(1 + out.size() / 32);
      i = end;
    } else if (c == '}') {
      throw RenderError("Single '}' encountered in format string");
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace headwater::jinja
