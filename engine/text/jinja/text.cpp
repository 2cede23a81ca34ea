#include "engine/text/jinja/text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

namespace headwater::jinja::text {
namespace {

char32_t code_point(std::string_view character) { return utf8::next(character, 0).code_point; }

void append_hex(std::string& out, char32_t c, int digits) {
  constexpr std::string_view kHex = "0123456789abcdef";
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += kHex[(c >> shift) & 15];
}

// Simple case pairs of the scripts that template words are written in.
char32_t to_upper(char32_t c) {
  if (c >= 'a' && c <= 'z') return c - 32;
  if (c == 0xB5) return 0x39C;
  if (c == 0xFF) return 0x178;
  if (c >= 0xE0 && c <= 0xFE && c != 0xF7) return c - 32;
  if ((c >= 0x100 && c <= 0x137 && c != 0x131) || (c >= 0x14A && c <= 0x177)) return c & ~1U;
  if (c == 0x131) return 'I';
  if ((c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17E)) return c % 2 == 0 ? c - 1 : c;
  if (c == 0x3AC) return 0x386;
  if (c >= 0x3AD && c <= 0x3AF) return c - 37;
  if (c == 0x3C2) return 0x3A3;
  if (c >= 0x3B1 && c <= 0x3CB) return c - 32;
  if (c >= 0x430 && c <= 0x44F) return c - 32;
  if (c >= 0x450 && c <= 0x45F) return c - 80;
  return c;
}

char32_t to_lower(char32_t c) {
  if (c >= 'A' && c <= 'Z') return c + 32;
  if (c >= 0xC0 && c <= 0xDE && c != 0xD7) return c + 32;
  if (c == 0x178) return 0xFF;
  if ((c >= 0x100 && c <= 0x136 && c != 0x130) || (c >= 0x14A && c <= 0x176)) return c | 1;
  if ((c >= 0x139 && c <= 0x147) || (c >= 0x179 && c <= 0x17D)) return c % 2 == 1 ? c + 1 : c;
  if (c == 0x386) return 0x3AC;
  if (c >= 0x388 && c <= 0x38A) return c + 37;
  if (c >= 0x391 && c <= 0x3AB && c != 0x3A2) return c + 32;
  if (c >= 0x410 && c <= 0x42F) return c + 32;
  if (c >= 0x400 && c <= 0x40F) return c + 80;
  return c;
}

template <typename Map>
std::string map_characters(std::string_view s, const Map& map) {
  std::string out;
  out.reserve(s.size());
  for (size_t pos = 0; pos < s.size();) {
    const utf8::Step step = utf8::next(s, pos);
    utf8::append(out, map(step.code_point));
    pos += step.length;
  }
  return out;
}

bool is_printable(char32_t c) {
  struct Range {
    char32_t first, last;
  };
  // Controls, formats, separators other than the space, surrogates and private use.
  constexpr std::array<Range, 24> kHidden = {{
      {0x00, 0x1F},       {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},
      {0x61C, 0x61C},     {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},
      {0x8E2, 0x8E2},     {0x1680, 0x1680},   {0x180E, 0x180E},   {0x2000, 0x200F},
      {0x2028, 0x202F},   {0x205F, 0x206F},   {0x3000, 0x3000},   {0xD800, 0xF8FF},
      {0xFEFF, 0xFEFF},   {0xFFF0, 0xFFFB},   {0xFFFE, 0xFFFF},   {0x110BD, 0x110BD},
      {0x1D173, 0x1D17A}, {0xE0000, 0xE00FF}, {0xF0000, 0xFFFFF}, {0x100000, 0x10FFFF},
  }};
  return std::ranges::none_of(kHidden, [c](Range r) { return c >= r.first && c <= r.last; });
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool is_letter(char32_t c) {
  return to_upper(c) != c || to_lower(c) != c || (c >= 0xAA && c != 0xD7 && c != 0xF7);
}

size_t last_character(std::string_view s) {
  size_t pos = s.size() - 1;
  while (pos > 0 && (static_cast<uint8_t>(s[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}

}  // namespace

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

size_t length(std::string_view s) {
  return static_cast<size_t>(
      std::ranges::count_if(s, [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

size_t byte_offset(std::string_view s, size_t n) {
  size_t pos = 0;
  for (; n > 0 && pos < s.size(); --n) pos += utf8::next(s, pos).length;
  return pos;
}

size_t char_index(std::string_view s, size_t offset) { return length(s.substr(0, offset)); }

std::vector<std::string_view> characters(std::string_view s) {
  std::vector<std::string_view> out;
  out.reserve(s.size());
  for (size_t pos = 0; pos < s.size();) {
    out.push_back(s.substr(pos, utf8::next(s, pos).length));
    pos += out.back().size();
  }
  return out;
}

std::string_view strip(std::string_view s, Side side, std::optional<std::string_view> chars) {
  const auto goes = [&](std::string_view character) {
    // No character's bytes occur inside another's.
    return chars ? chars->find(character) != std::string_view::npos
                 : is_space(code_point(character));
  };
  if (static_cast<int>(side) & static_cast<int>(Side::kLeft)) {
    while (!s.empty()) {
      const size_t size = utf8::next(s, 0).length;
      if (!goes(s.substr(0, size))) break;
      s.remove_prefix(size);
    }
  }
  if (static_cast<int>(side) & static_cast<int>(Side::kRight)) {
    while (!s.empty()) {
      const size_t last = last_character(s);
      if (!goes(s.substr(last))) break;
      s = s.substr(0, last);
    }
  }
  return s;
}

std::string upper(std::string_view s) {
  std::string out = map_characters(s, to_upper);
  return replace(out, "\u00DF", "SS", -1);
}

std::string lower(std::string_view s) { return map_characters(s, to_lower); }

std::string capitalize(std::string_view s) {
  bool first = true;
  return map_characters(
      s, [&](char32_t c) { return std::exchange(first, false) ? to_upper(c) : to_lower(c); });
}

std::string title(std::string_view s) {
  bool in_word = false;
  return map_characters(s, [&](char32_t c) {
    return std::exchange(in_word, is_letter(c)) ? to_lower(c) : to_upper(c);
  });
}

std::string replace(std::string_view s, std::string_view from, std::string_view to, int64_t count) {
  std::string out;
  size_t pos = 0;
  if (from.empty()) {
    for (std::string_view character : characters(s)) {
      if (count-- == 0) break;
      out.append(to).append(character);
      pos += character.size();
    }
    out.append(s.substr(pos));
    if (pos == s.size() && count != 0) out.append(to);
    return out;
  }
  for (size_t hit; count != 0 && (hit = s.find(from, pos)) != std::string_view::npos; --count) {
    out.append(s.substr(pos, hit - pos)).append(to);
    pos = hit + from.size();
  }
  return out.append(s.substr(pos));
}

std::vector<std::string> split(std::string_view s,
                               std::optional<std::string_view> separator,
                               int64_t max) {
  std::vector<std::string> out;
  if (separator) {
    for (size_t hit; max != 0 && (hit = s.find(*separator)) != std::string_view::npos; --max) {
      out.emplace_back(s.substr(0, hit));
      s.remove_prefix(hit + separator->size());
    }
    out.emplace_back(s);
    return out;
  }
  s = strip(s, Side::kLeft);
  for (; !s.empty(); --max) {
    size_t end = 0;
    while (end < s.size() && !is_space(utf8::next(s, end).code_point)) {
      end += utf8::next(s, end).length;
    }
    if (max == 0) {
      out.emplace_back(s);
      break;
    }
    out.emplace_back(s.substr(0, end));
    s = strip(s.substr(end), Side::kLeft);
  }
  return out;
}

std::vector<std::string> rsplit(std::string_view s,
                                std::optional<std::string_view> separator,
                                int64_t max) {
  std::vector<std::string> out;
  if (separator) {
    for (size_t hit; max != 0 && (hit = s.rfind(*separator)) != std::string_view::npos; --max) {
      out.emplace_back(s.substr(hit + separator->size()));
      s = s.substr(0, hit);
    }
    out.emplace_back(s);
  } else {
    s = strip(s, Side::kRight);
    for (; !s.empty(); --max) {
      size_t begin = s.size();
      while (begin > 0) {
        const size_t last = last_character(s.substr(0, begin));
        if (is_space(utf8::next(s, last).code_point)) break;
        begin = last;
      }
      if (max == 0) {
        out.emplace_back(s);
        break;
      }
      out.emplace_back(s.substr(begin));
      s = strip(s.substr(0, begin), Side::kRight);
    }
  }
  std::ranges::reverse(out);
  return out;
}

std::vector<std::string> split_lines(std::string_view s, bool keep_ends) {
  std::vector<std::string> out;
  size_t begin = 0;
  for (size_t pos = 0; pos < s.size();) {
    const utf8::Step step = utf8::next(s, pos);
    const size_t end = pos;
    pos += step.length;
    if (!is_line_end(step.code_point)) continue;
    if (step.code_point == '\r' && pos < s.size() && s[pos] == '\n') ++pos;
    out.emplace_back(s.substr(begin, (keep_ends ? pos : end) - begin));
    begin = pos;
  }
  if (begin < s.size()) out.emplace_back(s.substr(begin));
  return out;
}

std::string float_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d > 0 ? "inf" : "-inf";
  std::array<char, 400> buffer;
  const auto write = [&](std::chars_format format) {
    const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), d, format);
    return std::string(buffer.data(), result.ptr);
  };
  const std::string scientific = write(std::chars_format::scientific);
  const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return scientific;
  std::string plain = write(std::chars_format::fixed);
  if (plain.find('.') == std::string::npos) plain += ".0";
  return plain;
}

std::string fixed(double d, int digits) {
  std::array<char, 512> buffer;
  const auto result = std::to_chars(
      buffer.data(), buffer.data() + buffer.size(), d, std::chars_format::fixed, digits);
  return {buffer.data(), result.ptr};
}

void append_quoted(std::string& out, std::string_view s) {
  const bool has_single = s.find('\'') != std::string_view::npos;
  const char quote = has_single && s.find('"') == std::string_view::npos ? '"' : '\'';
  out += quote;
  for (std::string_view character : characters(s)) {
    const char32_t c = code_point(character);
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out.append("\\").append(character);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += character;
    } else {
      out += c < 0x100 ? "\\x" : c < 0x10000 ? "\\u" : "\\U";
      append_hex(out, c, c < 0x100 ? 2 : c < 0x10000 ? 4 : 8);
    }
  }
  out += quote;
}

void append_json_string(std::string& out, std::string_view s, bool ensure_ascii) {
  const auto escape = [&](char32_t unit) {
    out += "\\u";
    append_hex(out, unit, 4);
  };
  out += '"';
  for (size_t pos = 0; pos < s.size();) {
    const utf8::Step step = utf8::next(s, pos);
    const char32_t c = step.code_point;
    constexpr std::string_view kEscaped = "\"\\\n\r\t\b\f", kLetters = "\"\\nrtbf";
    const size_t escaped = c < 0x80 ? kEscaped.find(static_cast<char>(c)) : std::string_view::npos;
    if (escaped != std::string_view::npos) {
      out.append("\\").append(1, kLetters[escaped]);
    } else if (c < 0x20) {
      escape(c);
    } else if (ensure_ascii && c > 0xFFFF) {
      escape(0xD800 + ((c - 0x10000) >> 10));
      escape(0xDC00 + ((c - 0x10000) & 0x3FF));
    } else if (ensure_ascii && c > 0x7E) {
      escape(c);
    } else {
      out += s.substr(pos, step.length);
    }
    pos += step.length;
  }
  out += '"';
}

}  // namespace headwater::jinja::text
