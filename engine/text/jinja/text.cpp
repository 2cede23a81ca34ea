// Above 400 lines: one short function per function of Python.
#include "engine/text/jinja/text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "engine/text/unicode.h"

namespace headwater::jinja::text {
namespace {

char32_t code_point(std::string_view character) { return utf8::next(character, 0).code_point; }

void append_hex(std::string& out, char32_t c, int digits) {
  constexpr std::string_view kHex = "0123456789abcdef";
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += kHex[(c >> shift) & 15];
}

size_t last_character(std::string_view s) {
  size_t pos = s.size() - 1;
  while (pos > 0 && (static_cast<uint8_t>(s[pos]) & 0xC0) == 0x80) --pos;
  return pos;
}

bool is_cased(char32_t c) {
  const std::string_view category = unicode::category(c);
  return category == "Lu" || category == "Ll" || category == "Lt" || (c >= 0x2160 && c <= 0x217F) ||
         (c >= 0x24B6 && c <= 0x24E9) || c == 0xAA || c == 0xBA || category == "Lm";
}

// A final sigma is one that ends a word.
bool is_final_sigma(std::string_view s, size_t pos, size_t length) {
  const auto passes = [](char32_t c) {
    const std::string_view category = unicode::category(c);
    return category == "Mn" || category == "Me" || category == "Cf" || category == "Lm" ||
           category == "Sk" || c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2019;
  };
  size_t before = pos;
  bool letter_before = false;
  while (before > 0) {
    const size_t last = last_character(s.substr(0, before));
    const char32_t c = code_point(s.substr(last));
    before = last;
    if (passes(c)) continue;
    letter_before = is_cased(c);
    break;
  }
  if (!letter_before) return false;
  for (size_t after = pos + length; after < s.size();) {
    const utf8::Step step = utf8::next(s, after);
    after += step.length;
    if (!passes(step.code_point)) return !is_cased(step.code_point);
  }
  return true;
}

template <typename Map>
std::string map_characters(std::string_view s, const Map& map) {
  std::string out;
  out.reserve(s.size());
  for (size_t pos = 0; pos < s.size();) {
    const utf8::Step step = utf8::next(s, pos);
    map(out, pos, step);
    pos += step.length;
  }
  return out;
}

void append_lower_at(std::string& out, std::string_view s, size_t pos, const utf8::Step& step) {
  if (step.code_point == 0x3A3) {
    out += is_final_sigma(s, pos, step.length) ? "\u03C2" : "\u03C3";
  } else {
    unicode::append_lower(out, step.code_point);
  }
}

// As Python's repr has it: neither control, format, surrogate, private nor unassigned, and no
// separator but the space.
bool is_printable(char32_t c) {
  if (c == ' ') return true;
  const char major = unicode::category(c)[0];
  return major != 'C' && major != 'Z';
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
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
  return map_characters(s, [](std::string& out, size_t, const utf8::Step& step) {
    unicode::append_upper(out, step.code_point);
  });
}

std::string lower(std::string_view s) {
  return map_characters(s, [&](std::string& out, size_t pos, const utf8::Step& step) {
    append_lower_at(out, s, pos, step);
  });
}

std::string swap_case(std::string_view s) {
  return map_characters(s, [&](std::string& out, size_t pos, const utf8::Step& step) {
    const std::string_view category = unicode::category(step.code_point);
    if (category == "Lu") {
      append_lower_at(out, s, pos, step);
    } else if (category == "Ll") {
      unicode::append_upper(out, step.code_point);
    } else {
      utf8::append(out, step.code_point);
    }
  });
}

std::string capitalize(std::string_view s) {
  return map_characters(s, [&](std::string& out, size_t pos, const utf8::Step& step) {
    if (pos == 0) {
      unicode::append_title(out, step.code_point);
    } else {
      append_lower_at(out, s, pos, step);
    }
  });
}

std::string title(std::string_view s) {
  bool in_word = false;
  return map_characters(s, [&](std::string& out, size_t pos, const utf8::Step& step) {
    if (std::exchange(in_word, is_cased(step.code_point))) {
      append_lower_at(out, s, pos, step);
    } else {
      unicode::append_title(out, step.code_point);
    }
  });
}

std::string title_words(std::string_view s) {
  bool in_word = false;
  size_t begin = 0;
  std::string out;
  const auto flush = [&](size_t end) {
    const std::string_view word = s.substr(begin, end - begin);
    if (word.empty()) return;
    const size_t first = utf8::next(word, 0).length;
    out.append(upper(word.substr(0, first))).append(lower(word.substr(first)));
    begin = end;
  };
  // Runs of these begin a word.
  for (size_t pos = 0; pos < s.size();) {
    const utf8::Step step = utf8::next(s, pos);
    const bool border = is_space(step.code_point) ||
                        (step.code_point < 128 && std::string_view("-({[<").find(static_cast<char>(
                                                      step.code_point)) != std::string_view::npos);
    if (border == in_word) flush(pos);
    in_word = !border;
    pos += step.length;
  }
  flush(s.size());
  return out;
}

bool is_word_character(char32_t c) {
  const std::string_view category = unicode::category(c);
  return category[0] == 'L' || category[0] == 'N' || c == '_';
}

int64_t count_words(std::string_view s) {
  int64_t count = 0;
  bool in_word = false;
  for (std::string_view character : characters(s)) {
    const bool is_word = is_word_character(code_point(character));
    count += is_word && !in_word;
    in_word = is_word;
  }
  return count;
}

std::string pad(std::string_view s, int64_t width, std::string_view fill, Side side) {
  const int64_t space = std::max<int64_t>(width - static_cast<int64_t>(length(s)), 0);
  // As Python's str.center does it.
  const int64_t left = side == Side::kLeft    ? space
                       : side == Side::kRight ? 0
                                              : space / 2 + (space & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += s;
  for (int64_t i = left; i < space; ++i) out += fill;
  return out;
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
