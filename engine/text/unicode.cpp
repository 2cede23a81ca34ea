#include "engine/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "engine/text/utf8.h"

namespace headwater::unicode {
namespace {

// Decomposed, in canonical order. Sorting each run of marks keeps long runs linear (up to the
// sort's logarithm), where swapping neighbours would not.
std::vector<utf8proc_int32_t> decomposed(std::string_view text, utf8proc_option_t options) {
  std::vector<utf8proc_int32_t> out;
  out.reserve(text.size());
  constexpr size_t kLongest = 32;  // U+FDFA decomposes into 18
  utf8proc_int32_t parts[kLongest];
  const auto combining_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  size_t run = 0;  // where the marks at the end begin
  const auto sort_run = [&] {
    std::stable_sort(out.begin() + static_cast<ptrdiff_t>(run), out.end(), [&](auto a, auto b) {
      return combining_class(a) < combining_class(b);
    });
  };
  for (size_t pos = 0; pos < text.size();) {
    const utf8::Step step = utf8::next(text, pos);
    pos += step.length;
    int bound_class = 0;
    const auto count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(step.code_point), parts, kLongest, options, &bound_class);
    for (utf8proc_ssize_t i = 0; i < std::min<utf8proc_ssize_t>(count, kLongest); ++i) {
      if (combining_class(parts[i]) == 0) {
        sort_run();
        run = out.size() + 1;
      }
      out.push_back(parts[i]);
    }
  }
  sort_run();
  return out;
}

std::string normalize_part(std::string_view text, bool compose, utf8proc_option_t options) {
  std::vector<utf8proc_int32_t> points = decomposed(text, options);
  if (compose) {
    const auto size = utf8proc_normalize_utf32(
        points.data(),
        static_cast<utf8proc_ssize_t>(points.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    points.resize(static_cast<size_t>(std::max<utf8proc_ssize_t>(size, 0)));
  }
  std::string out;
  out.reserve(text.size());
  for (const utf8proc_int32_t c : points) utf8::append(out, static_cast<char32_t>(c));
  return out;
}

constexpr size_t kPartBytes = 1 << 16;

bool is_ascii(char c) { return (c & 0x80) == 0; }

}  // namespace

std::string normalize(std::string_view text, Form form) {
  const bool compose = form == Form::kNfc || form == Form::kNfkc;
  const bool compatible = form == Form::kNfkc || form == Form::kNfkd;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE |
                                                      (compatible ? UTF8PROC_COMPAT : 0));
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    // ASCII changes in no form and composes with nothing before it, so it passes, but for the last
    // character of a stretch, which marks may follow.
    const auto ascii = static_cast<size_t>(std::ranges::find_if_not(text, is_ascii) - text.begin());
    if (ascii > 1 || ascii == text.size()) {
      const size_t plain = ascii == text.size() ? ascii : ascii - 1;
      out.append(text.substr(0, plain));
      text.remove_prefix(plain);
      continue;
    }
    size_t end = ascii;
    while (end < text.size() && !is_ascii(text[end])) {
      const utf8::Step step = utf8::next(text, end);
      // Nothing composes across an ideograph either: long texts go in parts.
      if (end > kPartBytes && step.code_point >= 0x4E00 && step.code_point <= 0x9FFF) break;
      end += step.length;
    }
    out += normalize_part(text.substr(0, end), compose, options);
    text.remove_prefix(end);
  }
  return out;
}

void append_lower(std::string& out, char32_t c) {
  // The one character whose lower case is two.
  if (c == 0x130) {
    out += "i\u0307";
  } else {
    utf8::append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

namespace {

// Characters whose upper case is several; the others have simple mappings.
std::string_view full_upper(char32_t c) {
  switch (c) {
    case 0xDF:
      return "SS";
    case 0x149:
      return "\u02BCN";
    case 0x1F0:
      return "J\u030C";
    case 0x390:
      return "\u0399\u0308\u0301";
    case 0x3B0:
      return "\u03A5\u0308\u0301";
    case 0x587:
      return "\u0535\u0552";
    case 0xFB00:
      return "FF";
    case 0xFB01:
      return "FI";
    case 0xFB02:
      return "FL";
    case 0xFB03:
      return "FFI";
    case 0xFB04:
      return "FFL";
    case 0xFB05:
    case 0xFB06:
      return "ST";
    default:
      return "";
  }
}

}  // namespace

void append_upper(std::string& out, char32_t c) {
  if (const std::string_view full = full_upper(c); !full.empty()) {
    out += full;
  } else {
    utf8::append(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
  }
}

void append_title(std::string& out, char32_t c) {
  const std::string_view full = full_upper(c);
  if (!full.empty() && full[0] < 0x7F) {  // "Ss", "Fi"
    out += full[0];
    for (const char rest : full.substr(1)) {
      out += rest >= 'A' && rest <= 'Z' ? static_cast<char>(rest + 32) : rest;
    }
  } else {
    utf8::append(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
  }
}

bool is_mark(char32_t c) { return category(c)[0] == 'M'; }

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::string_view last_character(std::string_view text) {
  size_t pos = text.size() - 1;
  while (pos > 0 && text.size() - pos < 4 && (static_cast<uint8_t>(text[pos]) & 0xC0) == 0x80) {
    --pos;
  }
  return text.substr(pos);
}

namespace {

bool is_space(std::string_view text, size_t pos) {
  const utf8::Step step = utf8::next(text, pos);
  return step.validity == utf8::Validity::kValid && is_white_space(step.code_point);
}

}  // namespace

size_t leading_space(std::string_view text) {
  size_t end = 0;
  while (end < text.size() && is_space(text, end)) end += utf8::next(text, end).length;
  return end;
}

size_t trailing_space(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    const std::string_view last = last_character(text.substr(0, begin));
    if (!is_space(last, 0)) break;
    begin -= last.size();
  }
  return text.size() - begin;
}

std::string_view category(char32_t c) {
  return utf8proc_category_string(static_cast<utf8proc_int32_t>(c));
}

size_t grapheme_end(std::string_view text, size_t pos) {
  utf8::Step step = utf8::next(text, pos);
  size_t end = pos + step.length;
  utf8proc_int32_t state = 0;
  while (end < text.size()) {
    const utf8::Step following = utf8::next(text, end);
    if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(step.code_point),
                                         static_cast<utf8proc_int32_t>(following.code_point),
                                         &state)) {
      break;
    }
    end += following.length;
    step = following;
  }
  return end;
}

}  // namespace headwater::unicode
