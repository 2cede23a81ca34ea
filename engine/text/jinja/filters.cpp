// Above 400 lines: the filters are one table, and each is a few lines.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/operators.h"
#include "engine/text/jinja/text.h"

namespace headwater::jinja {
namespace {

template <std::string (*kFunction)(std::string_view)>
Value mapped(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  return runtime.text(kFunction(self.str(runtime)));
}

Value to_string(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  return self.is_string() ? self : runtime.text(self.str(runtime));
}

Value trim(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [chars] = bind(arguments, {"chars"});
  const std::string s = self.str(runtime);
  if (chars.is_undefined() || chars.is_none()) return runtime.text(std::string(text::strip(s)));
  return runtime.text(std::string(text::strip(s, text::Side::kBoth, to_text(chars, "trim"))));
}

Value replace(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [from, to, count] = bind(arguments, {"old", "new", "count"});
  const std::string s = self.str(runtime), old_text = from.str(runtime), new_text = to.str(runtime);
  runtime.charge((s.size() / std::max<size_t>(old_text.size(), 1) + 1) * new_text.size() / 32);
  const int64_t max = count.is_undefined() || count.is_none() ? -1 : to_integer(count, "replace");
  return runtime.text(text::replace(s, old_text, new_text, max));
}

Value escape(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  std::string out;
  for (const char c : self.str(runtime)) {
    constexpr std::string_view kSpecial = "&<>\"'";
    constexpr std::string_view kEntities[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    const size_t i = kSpecial.find(c);
    if (i == std::string_view::npos) {
      out += c;
    } else {
      out += kEntities[i];
    }
  }
  return runtime.text(std::move(out));
}

Value indent(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [width, first, blank] = bind(arguments, {"width", "first", "blank"});
  const int64_t spaces =
      width.is_undefined() || width.is_string() ? 4 : to_integer(width, "indent");
  runtime.charge(static_cast<size_t>(std::max<int64_t>(spaces, 0)) / 32);
  const std::string prefix =
      width.is_string() ? width.string()
                        : std::string(static_cast<size_t>(std::max<int64_t>(spaces, 0)), ' ');
  std::string out;
  size_t line = 0;
  for (const std::string& content : text::split_lines(self.str(runtime) + "\n", false)) {
    if (line > 0) out += '\n';
    if (line > 0 ? blank.truthy() || !content.empty() : first.truthy()) {
      out += prefix;
      runtime.charge(prefix.size() / 32);
    }
    out += content;
    ++line;
  }
  return runtime.text(std::move(out));
}

// a.b.0 as one lookup after the other, with the fallback for each that finds nothing.
Value lookup_path(Runtime& runtime,
                  Value value,
                  const Value& path,
                  const Value& fallback = Value()) {
  if (path.is_undefined() || path.is_none()) return value;
  const auto step = [&](const Value& key) {
    value = get_item(runtime, value, key);
    if (value.is_undefined() && !fallback.is_undefined()) value = fallback;
  };
  if (!path.is_string()) {
    step(path);
    return value;
  }
  for (const std::string& part : text::split(path.string(), ".", -1)) {
    const bool is_index = !part.empty() && part.size() < 10 &&
                          std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
    step(is_index ? Value::of(int64_t{std::stol(part)}) : Value::of(part));
  }
  return value;
}

Value join(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [d, attribute] = bind(arguments, {"d", "attribute"});
  const std::string separator = d.is_undefined() ? "" : d.str(runtime);
  std::string out;
  bool first = true;
  for (const Value& item : iterate(runtime, self)) {
    const size_t before = out.size();
    if (!std::exchange(first, false)) out += separator;
    lookup_path(runtime, item, attribute).append_str(runtime, out);
    runtime.charge((out.size() - before) / 32);
  }
  return runtime.text(std::move(out));
}

Value tojson(Runtime& runtime, const Value& self, const Arguments& arguments) {
  // transformers' tojson takes ensure_ascii first.
  const auto [ascii, indent_by, separators, sort_keys] =
      bind(arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = ascii.truthy();
  style.sort_keys = sort_keys.truthy();
  if (indent_by.is_string()) {
    style.indent = indent_by.string();
  } else if (!indent_by.is_undefined() && !indent_by.is_none()) {
    const int64_t spaces = std::clamp<int64_t>(to_integer(indent_by, "tojson"), 0, 64);
    style.indent = std::string(static_cast<size_t>(spaces), ' ');
  }
  if (style.indent) style.item_separator = ",";
  if (separators.is_list() && separators.list().items.size() == 2) {
    style.item_separator = to_text(separators.list().items[0], "separators");
    style.key_separator = to_text(separators.list().items[1], "separators");
  }
  return runtime.text(to_json(runtime, self, style));
}

Value default_value(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [fallback, boolean] = bind(arguments, {"default_value", "boolean"});
  const bool missing = self.is_undefined() || (boolean.truthy() && !self.truthy());
  if (!missing) return self;
  return arguments.positional.empty() && arguments.named.empty() ? Value::of(std::string())
                                                                 : fallback;
}

Value length_of(Runtime&, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  return Value::of(length(self));
}

Value to_list(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  return runtime.list(iterate(runtime, self));
}

template <bool kLast>
Value end_item(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  if (kLast && self.is_list() && self.list().shape == List::Shape::kIterator) {
    throw RenderError("'" + std::string(self.type_name()) + "' object is not reversible");
  }
  const std::vector<Value> items = iterate(runtime, self);
  if (items.empty()) return Value::undefined("No item: the sequence was empty");
  return kLast ? items.back() : items.front();
}

Value reverse(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  const bool lazy = !self.is_list() || self.list().shape != List::Shape::kIterator;
  std::vector<Value> items = iterate(runtime, self);
  std::ranges::reverse(items);
  if (!self.is_string()) {
    return lazy
               ? runtime.make_list(std::move(items), List::Shape::kIterator, "list_reverseiterator")
               : runtime.list(std::move(items));
  }
  std::string out;
  for (const Value& item : items) out += item.string();
  return runtime.text(std::move(out));
}

Value items_of(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  if (self.is_undefined()) return runtime.iterator({});
  if (!self.is_dict()) throw RenderError("Can only get item pairs from a mapping.");
  std::vector<Value> out;
  for (const auto& [key, value] : self.dict().items()) out.push_back(runtime.tuple({key, value}));
  return runtime.iterator(std::move(out));
}

Value folded(const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.is_string()) return value;
  return Value::of(text::lower(value.string()));
}

void sort_by(Runtime& runtime, std::vector<std::pair<Value, Value>>& keyed, bool descending) {
  // n log n comparisons, charged before they are made.
  runtime.charge(keyed.size() * 20);
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    return descending ? less(runtime, b.first, a.first) : less(runtime, a.first, b.first);
  });
}

Value sort(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [descending, case_sensitive, attribute] =
      bind(arguments, {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> keyed;
  std::vector<std::string> paths;
  if (attribute.is_string()) paths = text::split(attribute.string(), ",", -1);
  for (Value& item : iterate(runtime, self)) {
    Value key;
    if (paths.size() > 1) {
      std::vector<Value> keys;
      for (const std::string& path : paths) {
        keys.push_back(
            folded(lookup_path(runtime, item, Value::of(path)), case_sensitive.truthy()));
      }
      key = runtime.list(std::move(keys));
    } else {
      key = folded(lookup_path(runtime, item, attribute), case_sensitive.truthy());
    }
    keyed.emplace_back(std::move(key), std::move(item));
  }
  sort_by(runtime, keyed, descending.truthy());
  std::vector<Value> out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return runtime.list(std::move(out));
}

Value dictsort(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [case_sensitive, by, descending] =
      bind(arguments, {"case_sensitive", "by", "reverse"});
  if (!self.is_dict()) throw RenderError("dictsort: expected a mapping");
  const bool by_value = by.is_string() && by.string() == "value";
  if (!by.is_undefined() && !by_value && !(by.is_string() && by.string() == "key")) {
    throw RenderError("You can only sort by either \"key\" or \"value\"");
  }
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : self.dict().items()) {
    keyed.emplace_back(folded(by_value ? value : key, case_sensitive.truthy()),
                       runtime.tuple({key, value}));
  }
  sort_by(runtime, keyed, descending.truthy());
  std::vector<Value> out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return runtime.list(std::move(out));
}

Value unique(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [case_sensitive, attribute] = bind(arguments, {"case_sensitive", "attribute"});
  Dict& seen = runtime.new_dict();
  std::vector<Value> out;
  for (const Value& item : iterate(runtime, self)) {
    const Value key = folded(lookup_path(runtime, item, attribute), case_sensitive.truthy());
    runtime.charge(4 + (key.is_string() ? 0 : seen.items().size()));
    if (seen.find(key)) continue;
    seen.set(key, Value::none());
    out.push_back(item);
  }
  return runtime.iterator(std::move(out));
}

template <bool kMax>
Value extreme(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [case_sensitive, attribute] = bind(arguments, {"case_sensitive", "attribute"});
  Value best = Value::undefined("No aggregated item, sequence was empty."), best_key;
  bool first = true;
  for (const Value& item : iterate(runtime, self)) {
    Value key = folded(lookup_path(runtime, item, attribute), case_sensitive.truthy());
    if (std::exchange(first, false) ||
        (kMax ? less(runtime, best_key, key) : less(runtime, key, best_key))) {
      best = item;
      best_key = std::move(key);
    }
  }
  return best;
}

Value sum(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [attribute, start] = bind(arguments, {"attribute", "start"});
  Value total = start.is_undefined() ? Value::of(int64_t{0}) : start;
  for (const Value& item : iterate(runtime, self)) {
    total = binary(runtime, BinaryOp::kAdd, total, lookup_path(runtime, item, attribute));
  }
  return total;
}

Arguments without_first(const Arguments& arguments, size_t n) {
  Arguments rest;
  rest.named = arguments.named;
  rest.positional.assign(arguments.positional.begin() + static_cast<ptrdiff_t>(n),
                         arguments.positional.end());
  return rest;
}

Value map(Runtime& runtime, const Value& self, const Arguments& arguments) {
  std::vector<Value> out;
  if (arguments.positional.empty()) {
    const auto [attribute, fallback] = bind(arguments, {"attribute", "default"});
    if (attribute.is_undefined()) fail_arguments("needs a filter or an attribute");
    for (const Value& item : iterate(runtime, self)) {
      out.push_back(lookup_path(runtime, item, attribute, fallback));
    }
    return runtime.iterator(std::move(out));
  }
  const std::string& name = to_text(arguments.positional[0], "map");
  const Builtin* filter = find_filter(name);
  if (!filter) throw RenderError("No filter named '" + name + "'");
  const Arguments rest = without_first(arguments, 1);
  for (const Value& item : iterate(runtime, self)) {
    out.push_back(filter->function(runtime, item, rest));
  }
  return runtime.iterator(std::move(out));
}

template <bool kKeep, bool kByAttribute>
Value select(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const size_t skip = kByAttribute ? 1 : 0;
  const auto& given = arguments.positional;
  if (given.size() < skip) fail_arguments("needs an attribute");
  const Builtin* test = nullptr;
  Arguments rest;
  if (given.size() > skip) {
    const std::string& name = to_text(given[skip], "select");
    test = find_test(name);
    if (!test) throw RenderError("No test named '" + name + "'");
    rest = without_first(arguments, skip + 1);
  }
  std::vector<Value> out;
  for (const Value& item : iterate(runtime, self)) {
    const Value tested = kByAttribute ? lookup_path(runtime, item, given[0]) : item;
    const bool passes = test ? test->function(runtime, tested, rest).boolean() : tested.truthy();
    if (passes == kKeep) out.push_back(item);
  }
  return runtime.iterator(std::move(out));
}

Value attr(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [name] = bind(arguments, {"name"});
  if (self.is_dict())
    return Value::undefined("'dict' object has no attribute '" + name.str(runtime) + "'");
  return get_attribute(runtime, self, to_text(name, "attr"));
}

Value groupby(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [attribute, fallback, case_sensitive] =
      bind(arguments, {"attribute", "default", "case_sensitive"});
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : iterate(runtime, self)) {
    Value key = folded(lookup_path(runtime, item, attribute, fallback), case_sensitive.truthy());
    keyed.emplace_back(std::move(key), std::move(item));
  }
  sort_by(runtime, keyed, false);
  std::vector<Value> groups;
  for (size_t i = 0; i < keyed.size();) {
    const Value key = keyed[i].first;
    std::vector<Value> members;
    for (; i < keyed.size() && equal(runtime, keyed[i].first, key); ++i)
      members.push_back(keyed[i].second);
    // The key as the first member spells it.
    const Value shown = lookup_path(runtime, members.front(), attribute, fallback);
    groups.push_back(runtime.make_list(
        {shown, runtime.list(std::move(members))}, List::Shape::kTuple, "_GroupTuple"));
  }
  return runtime.list(std::move(groups));
}

Value batch(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [line_count, fill] = bind(arguments, {"linecount", "fill_with"});
  const int64_t size = to_integer(line_count, "batch");
  if (size < 1) throw RenderError("batch: expected a positive size");
  std::vector<Value> batches, current;
  for (const Value& item : iterate(runtime, self)) {
    current.push_back(item);
    if (static_cast<int64_t>(current.size()) < size) continue;
    batches.push_back(runtime.list(std::exchange(current, {})));
  }
  if (!current.empty()) {
    while (!fill.is_undefined() && !fill.is_none() && static_cast<int64_t>(current.size()) < size) {
      runtime.charge(2);
      current.push_back(fill);
    }
    batches.push_back(runtime.list(std::move(current)));
  }
  return runtime.iterator(std::move(batches));
}

Value to_int(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [fallback, base_value] = bind(arguments, {"default", "base"});
  const int base =
      base_value.is_undefined()
          ? 10
          : static_cast<int>(std::clamp<int64_t>(to_integer(base_value, "int"), 2, 36));
  const Value otherwise = fallback.is_undefined() ? Value::of(int64_t{0}) : fallback;
  const auto truncated = [&](double d) {
    return std::isfinite(d) && std::abs(d) < 9.2e18 ? Value::of(static_cast<int64_t>(d))
                                                    : otherwise;
  };
  if (self.is_integral()) return Value::of(self.integer());
  if (self.is_float()) return truncated(self.number());
  if (!self.is_string()) return otherwise;
  std::string digits(text::strip(self.string()));
  // An underscore between digits means nothing.
  for (size_t i = 1; i + 1 < digits.size(); ++i) {
    if (digits[i] == '_' && digits[i - 1] != '_' && digits[i + 1] != '_') digits.erase(i, 1);
  }
  const bool negative = digits.starts_with('-');
  std::string_view rest = digits;
  if (negative || rest.starts_with('+')) rest.remove_prefix(1);
  const auto has_prefix = [&](char letter) {
    return rest.size() > 2 && rest[0] == '0' && (rest[1] | 32) == letter;
  };
  if ((base == 16 && has_prefix('x')) || (base == 8 && has_prefix('o')) ||
      (base == 2 && has_prefix('b'))) {
    rest.remove_prefix(2);
  }
  int64_t value = 0;
  const char* end = rest.data() + rest.size();
  const bool one_sign = !rest.starts_with('-');
  const auto whole = std::from_chars(rest.data(), end, value, base);
  if (one_sign && whole.ec == std::errc() && whole.ptr == end) {
    return Value::of(negative ? -value : value);
  }
  double real = 0;
  const auto parsed = std::from_chars(rest.data(), end, real);
  return one_sign && parsed.ec == std::errc() && parsed.ptr == end
             ? truncated(negative ? -real : real)
             : otherwise;
}

Value to_float(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [fallback] = bind(arguments, {"default"});
  if (self.is_number()) return Value::of(self.number());
  if (self.is_string()) {
    std::string_view digits = text::strip(self.string());
    if (digits.starts_with('+')) digits.remove_prefix(1);
    double value = 0;
    const char* end = digits.data() + digits.size();
    const auto parsed = std::from_chars(digits.data(), end, value);
    if (parsed.ec == std::errc() && parsed.ptr == end) return Value::of(value);
  }
  return fallback.is_undefined() ? Value::of(0.0) : fallback;
}

Value absolute(Runtime&, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  if (self.is_float()) return Value::of(std::fabs(self.number()));
  const int64_t value = to_integer(self, "abs");
  return value < 0 ? negate(self) : Value::of(value);
}

Value round(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [precision, method] = bind(arguments, {"precision", "method"});
  if (!self.is_number()) throw RenderError("round: expected a number");
  const int64_t digits = precision.is_undefined() ? 0 : to_integer(precision, "round");
  const std::string how = method.is_undefined() ? "common" : to_text(method, "round");
  if (digits < -18 || digits > 18) throw RenderError("round: precision out of range");
  if (how == "common" && self.is_integral() && digits >= 0) return Value::of(self.integer());
  const double scale = std::pow(10.0, static_cast<double>(digits)), value = self.number();
  if (how == "ceil") return Value::of(std::ceil(value * scale) / scale);
  if (how == "floor") return Value::of(std::floor(value * scale) / scale);
  if (how != "common") throw RenderError("method must be common, ceil or floor");
  if (digits < 0) {
    const double rounded = std::nearbyint(value * scale) / scale;
    return self.is_integral() ? Value::of(static_cast<int64_t>(rounded)) : Value::of(rounded);
  }
  return Value::of(std::stod(text::fixed(value, static_cast<int>(digits))));
}

Value word_count(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  return Value::of(text::count_words(self.str(runtime)));
}

Value format(Runtime& runtime, const Value& self, const Arguments& arguments) {
  if (!arguments.named.empty()) {
    if (!arguments.positional.empty()) {
      throw RenderError("can't handle positional and keyword arguments at the same time");
    }
    Dict& named = runtime.new_dict();
    for (const auto& [name, value] : arguments.named) named.set(Value::of(name), value);
    return runtime.text(percent_format(runtime, self.str(runtime), Value::of(&named)));
  }
  return runtime.text(
      percent_format(runtime, self.str(runtime), runtime.tuple(arguments.positional)));
}

Value center(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [width] = bind(arguments, {"width"});
  const int64_t columns = width.is_undefined() ? 80 : to_integer(width, "center");
  const std::string s = self.str(runtime);
  runtime.charge(static_cast<size_t>(std::max<int64_t>(columns, 0)) / 32);
  return runtime.text(text::pad(s, columns, " ", text::Side::kBoth));
}

Value truncate(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [length_value, kill_words, end_value, leeway_value] =
      bind(arguments, {"length", "killwords", "end", "leeway"});
  const int64_t max = length_value.is_undefined() ? 255 : to_integer(length_value, "truncate");
  const std::string end = end_value.is_undefined() ? "..." : to_text(end_value, "truncate");
  const bool default_leeway = leeway_value.is_undefined() || leeway_value.is_none();
  const int64_t leeway = default_leeway ? 5 : to_integer(leeway_value, "truncate");
  const auto end_size = static_cast<int64_t>(text::length(end));
  if (max < end_size || leeway < 0) throw RenderError("truncate: the length is too small");
  const std::string s = self.str(runtime);
  if (static_cast<int64_t>(text::length(s)) <= max + leeway) return runtime.text(s);
  std::string kept = s.substr(0, text::byte_offset(s, static_cast<size_t>(max - end_size)));
  if (!kill_words.truthy()) kept = kept.substr(0, kept.rfind(' '));
  return runtime.text(kept + end);
}

Value slice_columns(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [slices, fill] = bind(arguments, {"slices", "fill_with"});
  const int64_t count = to_integer(slices, "slice");
  if (count < 1) throw RenderError("slice: expected a positive count");
  const std::vector<Value> items = iterate(runtime, self);
  const auto size = static_cast<int64_t>(items.size());
  runtime.charge(static_cast<size_t>(count));
  std::vector<Value> out;
  size_t next = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool longer = i < size % count;
    std::vector<Value> column;
    for (int64_t n = size / count + (longer ? 1 : 0); n > 0; --n) column.push_back(items[next++]);
    if (!fill.is_undefined() && !fill.is_none() && !longer) column.push_back(fill);
    out.push_back(runtime.list(std::move(column)));
  }
  return runtime.iterator(std::move(out));
}

Value url_encode(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  const auto quoted = [&](const Value& value, bool in_query) {
    std::string out;
    for (const char c : value.str(runtime)) {
      constexpr std::string_view kPlain = "_.-~", kHex = "0123456789ABCDEF";
      const auto byte = static_cast<uint8_t>(c);
      const bool letter = (byte | 32) >= 'a' && (byte | 32) <= 'z';
      if (letter || (c >= '0' && c <= '9') || kPlain.find(c) != std::string_view::npos ||
          (c == '/' && !in_query)) {
        out += c;
      } else if (c == ' ' && in_query) {
        out += '+';
      } else {
        out.append({'%', kHex[byte >> 4], kHex[byte & 15]});
      }
    }
    return out;
  };
  if (self.is_string() || !(self.is_list() || self.is_dict())) {
    return runtime.text(quoted(self, false));
  }
  std::string out;
  const auto add = [&](const Value& key, const Value& value) {
    if (!out.empty()) out += '&';
    out.append(quoted(key, true)).append("=").append(quoted(value, true));
  };
  if (self.is_dict()) {
    for (const auto& [key, value] : self.dict().items()) add(key, value);
  } else {
    for (const Value& pair : iterate(runtime, self)) {
      const std::vector<Value> parts = iterate(runtime, pair);
      if (parts.size() != 2) throw RenderError("urlencode: expected pairs");
      add(parts[0], parts[1]);
    }
  }
  return runtime.text(std::move(out));
}

Value strip_tags(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  std::string s = self.str(runtime), out;
  const auto remove = [&](std::string_view open, std::string_view close) {
    for (size_t begin = 0; (begin = s.find(open, begin)) != std::string::npos;) {
      const size_t end = s.find(close, begin + open.size());
      if (end == std::string::npos) return;
      s.erase(begin, end + close.size() - begin);
      runtime.charge(1 + s.size() / 64);
    }
  };
  remove("<!--", "-->");
  remove("<", ">");
  for (const std::string& word : text::split(s, std::nullopt, -1)) {
    if (!out.empty()) out += ' ';
    out += word;
  }
  constexpr std::pair<std::string_view, std::string_view> kEntities[] = {{"&lt;", "<"},
                                                                         {"&gt;", ">"},
                                                                         {"&#34;", "\""},
                                                                         {"&quot;", "\""},
                                                                         {"&#39;", "'"},
                                                                         {"&amp;", "&"}};
  for (const auto& [entity, character] : kEntities) out = text::replace(out, entity, character, -1);
  return runtime.text(std::move(out));
}

Value file_size(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [binary_value] = bind(arguments, {"binary"});
  const bool is_binary = binary_value.truthy();
  const Value number = to_float(runtime, self, {});
  const double bytes = number.number(), base = is_binary ? 1024 : 1000;
  if (bytes == 1) return runtime.text("1 Byte");
  if (bytes < base) return runtime.text(std::to_string(static_cast<int64_t>(bytes)) + " Bytes");
  constexpr std::string_view kLetters = "kMGTPEZY";
  double unit = base;
  for (size_t i = 0; i < kLetters.size(); ++i) {
    unit *= base;
    if (bytes >= unit && i + 1 < kLetters.size()) continue;
    std::string name(1, is_binary && i == 0 ? 'K' : kLetters[i]);
    name += is_binary ? "iB" : "B";
    return runtime.text(text::fixed(base * bytes / unit, 1) + " " + name);
  }
  return runtime.text("");
}

constexpr Builtin kFilters[] = {
    {"abs", absolute},
    {"attr", attr},
    {"batch", batch},
    {"capitalize", mapped<text::capitalize>},
    {"center", center},
    {"count", length_of},
    {"d", default_value},
    {"default", default_value},
    {"dictsort", dictsort},
    {"e", escape},
    {"escape", escape},
    {"filesizeformat", file_size},
    {"first", end_item<false>},
    {"forceescape", escape},
    {"float", to_float},
    {"format", format},
    {"groupby", groupby},
    {"indent", indent},
    {"int", to_int},
    {"items", items_of},
    {"join", join},
    {"last", end_item<true>},
    {"length", length_of},
    {"list", to_list},
    {"lower", mapped<text::lower>},
    {"map", map},
    {"max", extreme<true>},
    {"min", extreme<false>},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"replace", replace},
    {"reverse", reverse},
    {"round", round},
    {"safe", to_string},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
    {"slice", slice_columns},
    {"sort", sort},
    {"string", to_string},
    {"striptags", strip_tags},
    {"sum", sum},
    {"title", mapped<text::title_words>},
    {"tojson", tojson},
    {"trim", trim},
    {"truncate", truncate},
    {"unique", unique},
    {"upper", mapped<text::upper>},
    {"urlencode", url_encode},
    {"wordcount", word_count},
};

}  // namespace

const Builtin* find_filter(std::string_view name) {
  for (const Builtin& filter : kFilters) {
    if (filter.name == name) return &filter;
  }
  return nullptr;
}

}  // namespace headwater::jinja
