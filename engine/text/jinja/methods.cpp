#include <algorithm>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/operators.h"
#include "engine/text/jinja/text.h"

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

template <bool kEnd>
Value has_affix(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [affix, from] = bind(arguments, {"affix", "start"});
  std::string_view s = self.string();
  const int64_t start = integer_or(from, 0, "start");
  s.remove_prefix(text::byte_offset(s, static_cast<size_t>(std::max<int64_t>(start, 0))));
  const auto has = [&](const Value& value) {
    const std::string& what = to_text(value, kEnd ? "endswith" : "startswith");
    return kEnd ? s.ends_with(what) : s.starts_with(what);
  };
  if (affix.is_list()) return Value::of(std::ranges::any_of(affix.list().items, has));
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
  const auto [sub] = bind(arguments, {"sub"});
  const std::string& s = self.string();
  const std::string& what = to_text(sub, "find");
  const size_t hit = kLast ? s.rfind(what) : s.find(what);
  if (hit != std::string::npos) return Value::of(static_cast<int64_t>(text::char_index(s, hit)));
  if (kMustFind) throw RenderError("substring not found");
  return Value::of(int64_t{-1});
}

Value count_text(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [sub] = bind(arguments, {"sub"});
  const std::string& s = self.string();
  const std::string& what = to_text(sub, "count");
  if (what.empty()) return Value::of(length(self) + 1);
  int64_t n = 0;
  for (size_t pos = 0; (pos = s.find(what, pos)) != std::string::npos; pos += what.size()) ++n;
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

template <bool (*kIs)(unsigned char)>
Value all_ascii(Runtime&, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  const std::string& s = self.string();
  return Value::of(!s.empty() && std::ranges::all_of(
                                     s, [](char c) { return kIs(static_cast<unsigned char>(c)); }));
}
bool is_digit(unsigned char c) { return c >= '0' && c <= '9'; }
bool is_alpha(unsigned char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }
bool is_alnum(unsigned char c) { return is_digit(c) || is_alpha(c); }

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
  const std::string& s = self.string();
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < s.size(); ++i) {
    const char c = s[i];
    if ((c == '{' || c == '}') && i + 1 < s.size() && s[i + 1] == c) {
      out += s[i++];
    } else if (c == '{') {
      const size_t end = s.find('}', i);
      if (end == std::string::npos) throw RenderError("expected '}' before end of string");
      const std::string field = s.substr(i + 1, end - i - 1);
      const Value* value = nullptr;
      const auto named = std::ranges::find_if(
          arguments.named, [&](const auto& argument) { return argument.first == field; });
      if (named != arguments.named.end()) {
        value = &named->second;
      } else if (std::ranges::all_of(field, [](char d) { return is_digit(d); })) {
        const size_t index = field.empty() ? next++ : std::stoul(field.substr(0, 9));
        if (index < arguments.positional.size()) value = &arguments.positional[index];
      }
      if (!value) throw RenderError("format: no argument for the field {" + field + "}");
      value->append_str(runtime, out);
      runtime.charge(1 + out.size() / 32);
      i = end;
    } else {
      out += c;
    }
  }
  return runtime.text(std::move(out));
}

Value append(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [item] = bind(arguments, {"object"});
  runtime.charge(2);
  self.list().items.push_back(item);
  return Value::none();
}

Value extend(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [more] = bind(arguments, {"iterable"});
  const std::vector<Value> items = iterate(runtime, more);
  runtime.charge(2 * items.size());
  self.list().items.insert(self.list().items.end(), items.begin(), items.end());
  return Value::none();
}

// Where an index that may count from the end lies among `size` items.
std::optional<size_t> position(int64_t index, size_t size) {
  if (index < 0) index += static_cast<int64_t>(size);
  if (index < 0 || index >= static_cast<int64_t>(size)) return std::nullopt;
  return static_cast<size_t>(index);
}

Value pop_item(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [index] = bind(arguments, {"index"});
  auto& items = self.list().items;
  const auto i = position(integer_or(index, -1, "pop"), items.size());
  if (!i) throw RenderError("pop index out of range");
  runtime.charge(1 + items.size() / 8);
  Value item = items[*i];
  items.erase(items.begin() + static_cast<ptrdiff_t>(*i));
  return item;
}

Value insert(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [index, item] = bind(arguments, {"index", "object"});
  auto& items = self.list().items;
  runtime.charge(2 + items.size() / 8);
  const auto size = static_cast<int64_t>(items.size());
  int64_t i = to_integer(index, "insert");
  i = std::clamp<int64_t>(i < 0 ? i + size : i, 0, size);
  items.insert(items.begin() + i, item);
  return Value::none();
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
  return runtime.list(std::move(out));
}

Value pop_key(Runtime& runtime, const Value& self, const Arguments& arguments) {
  auto [key, fallback] = bind(arguments, {"key", "default"});
  const Value* found = self.dict().find(key);
  if (!found) {
    if (arguments.positional.size() + arguments.named.size() > 1) return fallback;
    throw RenderError("pop: no such key");
  }
  const Value value = *found;
  runtime.charge(1 + self.dict().items().size());
  self.dict().erase(key);
  return value;
}

Value set_default(Runtime& runtime, const Value& self, const Arguments& arguments) {
  auto [key, fallback] = bind(arguments, {"key", "default"});
  if (const Value* value = self.dict().find(key)) return *value;
  runtime.charge(4);
  self.dict().set(key, fallback.is_undefined() ? Value::none() : fallback);
  return *self.dict().find(key);
}

Value update(Runtime& runtime, const Value& self, const Arguments& arguments) {
  for (const Value& other : arguments.positional) {
    if (!other.is_dict()) fail_arguments("takes dicts and keyword arguments");
    const std::vector<Dict::Item> items = other.dict().items();
    runtime.charge(4 * items.size());
    for (const auto& [key, value] : items) self.dict().set(key, value);
  }
  for (const auto& [name, value] : arguments.named) self.dict().set(runtime.text(name), value);
  return Value::none();
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
    {"isdigit", all_ascii<is_digit>},
    {"isnumeric", all_ascii<is_digit>},
    {"isdecimal", all_ascii<is_digit>},
    {"isalpha", all_ascii<is_alpha>},
    {"isalnum", all_ascii<is_alnum>},
    {"isspace", is_space},
    {"isupper", by_test<kUpper>},
    {"islower", by_test<kLower>},
};

constexpr Builtin kListMethods[] = {
    {"append", append},
    {"extend", extend},
    {"pop", pop_item},
    {"insert", insert},
    {"index", locate<false>},
    {"count", locate<true>},
    {"copy", copy<false>},
};

constexpr Builtin kDictMethods[] = {
    {"get", get},
    {"items", view<View::kItems>},
    {"keys", view<View::kKeys>},
    {"values", view<View::kValues>},
    {"pop", pop_key},
    {"setdefault", set_default},
    {"update", update},
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
  if (!self.is_list()) return nullptr;
  if (self.list().is_tuple && name != "index" && name != "count") return nullptr;
  return search(kListMethods);
}

}  // namespace headwater::jinja
