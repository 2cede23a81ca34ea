// Above 400 lines: the methods are three tables, and each is a few lines.
#include <algorithm>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/operators.h"
#include "engine/text/jinja/text.h"
#include "engine/text/unicode.h"

namespace headwater::jinja {
namespace {

std::optional<std::string_view> optional_text(const Value& value, std::string_view what) {
  if (value.is_undefined() || value.is_none()) return std::nullopt;
  return to_text(value, what);
}

int64_t integer_or(const Value& value, int64_t fallback, std::string_view what) {
  return value.is_undefined() || value.is_none() ? fallback : to_integer(value, what);
}

Value list_of(Runtime& runtime, std::vector<std::string> texts) {
  std::vector<Value> items;
  items.reserve(texts.size());
  for (std::string& s : texts) items.push_back(runtime.text(std::move(s)));
  return runtime.list(std::move(items));
}

template <text::Side kSide>
Value strip(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [chars] = bind(arguments, {"chars"});
  return runtime.text(
      std::string(text::strip(self.string(), kSide, optional_text(chars, "strip"))));
}

using SplitFunction = std::vector<std::string> (*)(std::string_view,
                                                   std::optional<std::string_view>,
                                                   int64_t);
template <SplitFunction kSplit>
Value split(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [sep, max] = bind(arguments, {"sep", "maxsplit"});
  const auto separator = optional_text(sep, "split");
  if (separator && separator->empty()) throw RenderError("empty separator");
  runtime.charge(self.string().size());
  return list_of(runtime, kSplit(self.string(), separator, integer_or(max, -1, "split")));
}

Value split_lines(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [keep] = bind(arguments, {"keepends"});
  runtime.charge(self.string().size());
  return list_of(runtime, text::split_lines(self.string(), keep.truthy()));
}

template <bool kLast>
Value partition(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [sep] = bind(arguments, {"sep"});
  const std::string& separator = to_text(sep, "partition");
  if (separator.empty()) throw RenderError("empty separator");
  const std::string& s = self.string();
  const size_t hit = kLast ? s.rfind(separator) : s.find(separator);
  std::vector<std::string> parts = {s, "", ""};
  if (hit != std::string::npos) {
    parts = {s.substr(0, hit), separator, s.substr(hit + separator.size())};
  } else if (kLast) {
    std::swap(parts[0], parts[2]);
  }
  std::vector<Value> items;
  for (std::string& part : parts) items.push_back(runtime.text(std::move(part)));
  return runtime.tuple(std::move(items));
}

// The part of a text that start and end name, and where it begins; nullopt: start lies behind the
// end.
std::optional<std::pair<std::string_view, size_t>> part_of(const std::string& s,
                                                           const Value& start_value,
                                                           const Value& end_value) {
  if ((start_value.is_undefined() || start_value.is_none()) &&
      (end_value.is_undefined() || end_value.is_none())) {
    return std::pair(std::string_view(s), size_t{0});
  }
  const auto size = static_cast<int64_t>(text::length(s));
  const auto place = [&](const Value& v, int64_t absent) {
    const int64_t i = integer_or(v, absent, "a place in a text");
    return i < 0 ? std::max<int64_t>(i + size, 0) : i;
  };
  const int64_t start = place(start_value, 0);
  const int64_t end = std::min(place(end_value, size), size);
  if (start > end) return std::nullopt;
  const size_t first = text::byte_offset(s, static_cast<size_t>(start));
  const size_t last = text::byte_offset(s, static_cast<size_t>(end));
  return std::pair(std::string_view(s).substr(first, last - first), first);
}

template <bool kEnd>
Value has_affix(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [affix, start, end] = bind(arguments, {"affix", "start", "end"});
  const auto part = part_of(self.string(), start, end);
  const auto has = [&](const Value& value) {
    const std::string& what = to_text(value, kEnd ? "endswith" : "startswith");
    return part && (kEnd ? part->first.ends_with(what) : part->first.starts_with(what));
  };
  if (affix.is_list() && affix.list().is_tuple()) {
    return Value::of(std::ranges::any_of(affix.list().items, has));
  }
  return Value::of(has(affix));
}

template <bool kEnd>
Value remove_affix(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [affix] = bind(arguments, {"affix"});
  const std::string& what = to_text(affix, "removeprefix");
  std::string_view s = self.string();
  if (!kEnd && s.starts_with(what)) s.remove_prefix(what.size());
  if (kEnd && s.ends_with(what)) s.remove_suffix(what.size());
  return runtime.text(std::string(s));
}

Value replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [from, to, count] = bind(arguments, {"old", "new", "count"});
  const std::string& s = self.string();
  const std::string &old_text = to_text(from, "replace"), &new_text = to_text(to, "replace");
  runtime.charge(s.size() / 32 +
                 (s.size() / std::max<size_t>(old_text.size(), 1) + 1) * new_text.size() / 32);
  return runtime.text(text::replace(s, old_text, new_text, integer_or(count, -1, "replace")));
}

template <std::string (*kFunction)(std::string_view)>
Value mapped(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  return runtime.text(kFunction(self.string()));
}

template <bool kLast, bool kMustFind>
Value find(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [sub, start, end] = bind(arguments, {"sub", "start", "end"});
  const std::string& s = self.string();
  const std::string& what = to_text(sub, "find");
  if (const auto part = part_of(s, start, end)) {
    const size_t hit = kLast ? part->first.rfind(what) : part->first.find(what);
    if (hit != std::string::npos) {
      return Value::of(static_cast<int64_t>(text::char_index(s, part->second + hit)));
    }
  }
  if (kMustFind) throw RenderError("substring not found");
  return Value::of(int64_t{-1});
}

Value count_text(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [sub, start, end] = bind(arguments, {"sub", "start", "end"});
  const std::string& what = to_text(sub, "count");
  const auto part = part_of(self.string(), start, end);
  if (!part) return Value::of(int64_t{0});
  const std::string_view s = part->first;
  if (what.empty()) return Value::of(static_cast<int64_t>(text::length(s)) + 1);
  int64_t n = 0;
  for (size_t pos = 0; (pos = s.find(what, pos)) != std::string_view::npos; pos += what.size()) ++n;
  return Value::of(n);
}

Value join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [iterable] = bind(arguments, {"iterable"});
  std::string out;
  bool first = true;
  for (const Value& item : iterate(runtime, iterable)) {
    if (!std::exchange(first, false)) out += self.string();
    out += to_text(item, "join");
    runtime.charge((self.string().size() + item.string().size()) / 32);
  }
  return runtime.text(std::move(out));
}

template <bool (*kIs)(char32_t)>
Value all_characters(Runtime&, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  const std::vector<std::string_view> characters = text::characters(self.string());
  return Value::of(!characters.empty() && std::ranges::all_of(characters, [](std::string_view c) {
    return kIs(utf8::next(c, 0).code_point);
  }));
}
bool is_alpha(char32_t c) { return unicode::category(c)[0] == 'L'; }
bool is_decimal(char32_t c) { return unicode::category(c) == "Nd"; }
bool is_digit(char32_t c) {
  return is_decimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
         (c >= 0x2460 && c <= 0x2468) || (c >= 0x2474 && c <= 0x247C) ||
         (c >= 0x2488 && c <= 0x2490) || c == 0x24EA || (c >= 0x24F5 && c <= 0x24FD) ||
         c == 0x24FF || (c >= 0x2776 && c <= 0x277E) || (c >= 0x2780 && c <= 0x2788) ||
         (c >= 0x278A && c <= 0x2792);
}
// Ideographs count too.
bool is_numeric(char32_t c) {
  constexpr std::u32string_view kIdeographs =
      U"\u3405\u3483\u382A\u3B4D\u4E00\u4E03\u4E07\u4E09\u4E5D\u4E8C\u4E94\u4E96\u4EBF\u4EC0\u4EDF"
      U"\u4EE8\u4F0D\u4F70\u5104\u5146\u5169\u516B\u516D\u5341\u5343\u5344\u5345\u534C\u53C1\u53C2"
      U"\u53C3\u53C4\u56DB\u58F1\u58F9\u5E7A\u5EFE\u5EFF\u5F0C\u5F0D\u5F0E\u5F10\u62FE\u634C\u67D2"
      U"\u6F06\u7396\u767E\u8086\u842C\u8CAE\u8CB3\u8D30\u9621\u9646\u964C\u9678\u96F6";
  return unicode::category(c)[0] == 'N' || kIdeographs.find(c) != std::u32string_view::npos;
}
bool is_alnum(char32_t c) { return is_alpha(c) || is_decimal(c) || is_digit(c) || is_numeric(c); }
bool is_ascii(char32_t c) { return c < 128; }

Value is_ascii_text(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return self.string().empty() ? Value::of(true)
                               : all_characters<is_ascii>(runtime, self, arguments);
}

Value is_title(Runtime&, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  const std::string& s = self.string();
  return Value::of(text::title(s) == s && text::lower(s) != text::upper(s));
}

Value is_identifier(Runtime&, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  const std::vector<std::string_view> characters = text::characters(self.string());
  const auto word = [](std::string_view c) {
    return text::is_word_character(utf8::next(c, 0).code_point);
  };
  return Value::of(!characters.empty() && std::ranges::all_of(characters, word) &&
                   unicode::category(utf8::next(characters[0], 0).code_point)[0] != 'N');
}

template <text::Side kSide>
Value justify(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [width, fill] = bind(arguments, {"width", "fillchar"});
  const int64_t columns = to_integer(width, "width");
  const std::string with = fill.is_undefined() ? " " : to_text(fill, "fillchar");
  if (text::length(with) != 1) {
    throw RenderError("The fill character must be exactly one character long");
  }
  runtime.charge(static_cast<size_t>(std::max<int64_t>(columns, 0)) / 8);
  return runtime.text(text::pad(self.string(), columns, with, kSide));
}

Value zero_fill(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [width] = bind(arguments, {"width"});
  const int64_t columns = to_integer(width, "zfill");
  runtime.charge(static_cast<size_t>(std::max<int64_t>(columns, 0)) / 8);
  std::string_view s = self.string();
  std::string sign;
  if (s.starts_with('+') || s.starts_with('-')) {
    sign = s[0];
    s.remove_prefix(1);
  }
  return runtime.text(
      sign + text::pad(s, columns - static_cast<int64_t>(sign.size()), "0", text::Side::kLeft));
}

Value expand_tabs(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [size_value] = bind(arguments, {"tabsize"});
  const int64_t size = std::min<int64_t>(integer_or(size_value, 8, "expandtabs"), 1024);
  std::string out;
  int64_t column = 0;
  for (std::string_view character : text::characters(self.string())) {
    if (character == "\t") {
      const int64_t spaces = size > 0 ? size - column % size : 0;
      runtime.charge(static_cast<size_t>(spaces) / 8 + 1);
      out.append(static_cast<size_t>(spaces), ' ');
      column += spaces;
      continue;
    }
    out += character;
    column = character == "\n" || character == "\r" ? 0 : column + 1;
  }
  return runtime.text(std::move(out));
}

Value is_space(Runtime&, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  return Value::of(!self.string().empty() && text::strip(self.string()).empty());
}

template <std::string_view const& kTest>
Value by_test(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return find_test(kTest)->function(runtime, self, arguments);
}
constexpr std::string_view kUpper = "upper", kLower = "lower";

Value format(Runtime& runtime, const Value& self, const Arguments& arguments) {
  return runtime.text(brace_format(runtime, self.string(), arguments));
}

Value format_map(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [mapping] = bind(arguments, {"mapping"});
  if (!mapping.is_dict()) throw RenderError("format_map: expected a mapping");
  Arguments named;
  for (const auto& [key, value] : mapping.dict().items()) {
    if (key.is_string()) named.named.emplace_back(key.string(), value);
  }
  return runtime.text(brace_format(runtime, self.string(), named));
}

template <bool kCount>
Value locate(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const Value item = bind(arguments, {"value"})[0];
  const auto& items = self.list().items;
  runtime.charge(1 + items.size());
  const auto is_item = [&](const Value& other) { return equal(runtime, other, item); };
  if (kCount) return Value::of(int64_t{std::ranges::count_if(items, is_item)});
  const auto hit = std::ranges::find_if(items, is_item);
  if (hit == items.end()) throw RenderError("the value is not in the list");
  return Value::of(int64_t{hit - items.begin()});
}

Value get(Runtime&, const Value& self, const Arguments& arguments) {
  auto [key, fallback] = bind(arguments, {"key", "default"});
  if (const Value* value = self.dict().find(key)) return *value;
  return fallback.is_undefined() ? Value::none() : fallback;
}

enum class View { kItems, kKeys, kValues };
template <View kView>
Value view(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  std::vector<Value> out;
  for (const auto& [key, value] : self.dict().items()) {
    out.push_back(kView == View::kKeys     ? key
                  : kView == View::kValues ? value
                                           : runtime.tuple({key, value}));
  }
  constexpr std::string_view kNames[] = {"dict_items", "dict_keys", "dict_values"};
  return runtime.make_list(std::move(out), List::Shape::kView, kNames[static_cast<int>(kView)]);
}

template <bool kDict>
Value copy(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  if (!kDict) return runtime.list(self.list().items);
  Dict& dict = runtime.new_dict();
  runtime.charge(4 * self.dict().items().size());
  for (const auto& [key, value] : self.dict().items()) dict.set(key, value);
  return Value::of(&dict);
}

constexpr Builtin kTextMethods[] = {
    {"strip", strip<text::Side::kBoth>},
    {"lstrip", strip<text::Side::kLeft>},
    {"rstrip", strip<text::Side::kRight>},
    {"split", split<text::split>},
    {"rsplit", split<text::rsplit>},
    {"splitlines", split_lines},
    {"partition", partition<false>},
    {"rpartition", partition<true>},
    {"startswith", has_affix<false>},
    {"endswith", has_affix<true>},
    {"removeprefix", remove_affix<false>},
    {"removesuffix", remove_affix<true>},
    {"replace", replace},
    {"upper", mapped<text::upper>},
    {"lower", mapped<text::lower>},
    {"capitalize", mapped<text::capitalize>},
    {"title", mapped<text::title>},
    {"find", find<false, false>},
    {"rfind", find<true, false>},
    {"index", find<false, true>},
    {"rindex", find<true, true>},
    {"count", count_text},
    {"join", join},
    {"format", format},
    {"format_map", format_map},
    {"center", justify<text::Side::kBoth>},
    {"ljust", justify<text::Side::kRight>},
    {"rjust", justify<text::Side::kLeft>},
    {"zfill", zero_fill},
    {"expandtabs", expand_tabs},
    {"swapcase", mapped<text::swap_case>},
    {"casefold", mapped<text::lower>},
    {"isdigit", all_characters<is_digit>},
    {"isnumeric", all_characters<is_numeric>},
    {"isdecimal", all_characters<is_decimal>},
    {"isalpha", all_characters<is_alpha>},
    {"isalnum", all_characters<is_alnum>},
    {"isascii", is_ascii_text},
    {"istitle", is_title},
    {"isidentifier", is_identifier},
    {"isspace", is_space},
    {"isupper", by_test<kUpper>},
    {"islower", by_test<kLower>},
};

constexpr Builtin kListMethods[] = {
    {"append", nullptr},
    {"clear", nullptr},
    {"extend", nullptr},
    {"insert", nullptr},
    {"pop", nullptr},
    {"remove", nullptr},
    {"reverse", nullptr},
    {"sort", nullptr},
    {"index", locate<false>},
    {"count", locate<true>},
    {"copy", copy<false>},
};

constexpr Builtin kDictMethods[] = {
    {"get", get},
    {"items", view<View::kItems>},
    {"keys", view<View::kKeys>},
    {"values", view<View::kValues>},
    {"clear", nullptr},
    {"pop", nullptr},
    {"popitem", nullptr},
    {"setdefault", nullptr},
    {"update", nullptr},
    {"copy", copy<true>},
};

}  // namespace

const Builtin* find_method(const Value& self, std::string_view name) {
  const auto search = [&](const auto& table) -> const Builtin* {
    for (const Builtin& method : table) {
      if (method.name == name) return &method;
    }
    return nullptr;
  };
  if (self.is_string()) return search(kTextMethods);
  if (self.is_dict()) return search(kDictMethods);
  if (!self.is_list() || !self.list().has_places()) return nullptr;
  if (self.list().shape != List::Shape::kList && name != "index" && name != "count") return nullptr;
  return search(kListMethods);
}

}  // namespace headwater::jinja
