#include "engine/text/jinja/value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/text/jinja/operators.h"
#include "engine/text/jinja/text.h"

namespace headwater::jinja {

void fail_nesting() {
  throw RenderError("a value is nested deeper than " + std::to_string(kMaxNesting) + " levels");
}

std::optional<Value> Object::attribute(Runtime&, std::string_view) { return std::nullopt; }
std::string Object::repr(Runtime&, int) { return "<" + std::string(type_name()) + ">"; }
bool Object::set_attribute(std::string_view, const Value&) { return false; }
Value Object::call(Runtime&, const Arguments&) {
  throw RenderError("'" + std::string(type_name()) + "' object is not callable");
}

Value Value::undefined(std::string message) {
  return Value(Undefined{std::make_shared<const std::string>(std::move(message))});
}

std::string Value::undefined_message() const {
  const Str& message = std::get<Undefined>(state_).message;
  return message ? *message : "a value is undefined";
}

std::string_view Value::type_name() const {
  if (is_list()) return list().type_name;
  if (is_object()) return object().type_name();
  constexpr std::string_view kNames[] = {
      "Undefined", "NoneType", "bool", "int", "float", "str", "list", "dict", "object"};
  return kNames[state_.index()];
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (is_string()) return !string().empty();
  if (is_list()) return list().shape == List::Shape::kIterator || !list().items.empty();
  if (is_dict()) return !dict().items().empty();
  return true;
}

std::string Value::str(Runtime& runtime) const {
  std::string out;
  append_str(runtime, out);
  return out;
}

void Value::append_str(Runtime& runtime, std::string& out) const {
  if (is_string()) {
    runtime.charge(string().size() / 32);
    out += string();
  } else {
    append_repr(runtime, out);
  }
}

namespace {

void append_list(Runtime& runtime, const List& l, std::string& out, int depth) {
  using Shape = List::Shape;
  if (l.shape == Shape::kIterator) {
    out.append("<").append(l.type_name).append(" object>");
    return;
  }
  if (l.shape == Shape::kRange) {
    // start, stop and step, as far as the items still say them.
    const int64_t start = l.items.empty() ? 0 : l.items.front().integer();
    const int64_t step = l.items.size() > 1 ? l.items[1].integer() - start : 1;
    const int64_t stop = l.items.empty() ? 0 : l.items.back().integer() + step;
    out.append("range(").append(std::to_string(start)).append(", ").append(std::to_string(stop));
    if (step != 1) out.append(", ").append(std::to_string(step));
    out += ')';
    return;
  }
  if (l.shape == Shape::kView) out.append(l.type_name).append("(");
  out += l.is_tuple() ? '(' : '[';
  for (size_t i = 0; i < l.items.size(); ++i) {
    if (i > 0) out += ", ";
    l.items[i].append_repr(runtime, out, depth + 1);
  }
  if (l.is_tuple() && l.items.size() == 1) out += ',';
  out += l.is_tuple() ? ')' : ']';
  if (l.shape == Shape::kView) out += ')';
}

}  // namespace

void Value::append_repr(Runtime& runtime, std::string& out, int depth) const {
  runtime.charge(1);
  if (depth > kMaxNesting) fail_nesting();
  if (is_undefined()) {
    if (depth > 0) out += "Undefined";
  } else if (is_none()) {
    out += "None";
  } else if (is_bool()) {
    out += boolean() ? "True" : "False";
  } else if (is_integer()) {
    out += std::to_string(integer());
  } else if (is_float()) {
    out += text::float_repr(number());
  } else if (is_string()) {
    runtime.charge(string().size() / 8);
    text::append_quoted(out, string());
  } else if (is_list()) {
    append_list(runtime, list(), out, depth);
  } else if (is_dict()) {
    out += '{';
    bool first = true;
    for (const auto& [key, value] : dict().items()) {
      if (!std::exchange(first, false)) out += ", ";
      key.append_repr(runtime, out, depth + 1);
      out += ": ";
      value.append_repr(runtime, out, depth + 1);
    }
    out += '}';
  } else {
    out += object().repr(runtime, depth);
  }
}

bool Value::same(const Value& other) const {
  if (state_.index() != other.state_.index()) return false;
  if (is_list()) return &list() == &other.list();
  if (is_dict()) return &dict() == &other.dict();
  if (is_object()) return &object() == &other.object();
  return equal_scalar(other);
}

bool Value::equal_scalar(const Value& other) const {
  if (is_integral() && other.is_integral()) return integer() == other.integer();
  if (is_number() && other.is_number()) return number() == other.number();
  if (is_string() && other.is_string()) return string() == other.string();
  if (is_undefined()) return other.is_undefined();
  if (is_none()) return other.is_none();
  return is_object() && other.is_object() && &object() == &other.object();
}

std::optional<size_t> Dict::index_of(const Value& key) const {
  if (key.is_string()) {
    const auto it = by_string_.find(key.string());
    return it == by_string_.end() ? std::nullopt : std::optional(it->second);
  }
  if (by_string_.size() == items_.size()) return std::nullopt;
  for (size_t i = 0; i < items_.size(); ++i) {
    if (items_[i].first.equal_scalar(key)) return i;
  }
  return std::nullopt;
}

const Value* Dict::find(const Value& key) const {
  const auto index = index_of(key);
  return index ? &items_[*index].second : nullptr;
}

const Value* Dict::find(std::string_view key) const {
  const auto it = by_string_.find(key);
  return it == by_string_.end() ? nullptr : &items_[it->second].second;
}

void Dict::set(const Value& key, Value value) {
  if (key.is_dict() || key.is_list()) {
    throw RenderError("unhashable type: '" + std::string(key.type_name()) + "'");
  }
  if (const auto index = index_of(key)) {
    items_[*index].second = std::move(value);
    return;
  }
  items_.emplace_back(key, std::move(value));
  if (key.is_string()) by_string_.emplace(items_.back().first.string(), items_.size() - 1);
}

bool Dict::erase(const Value& key) {
  const auto index = index_of(key);
  if (!index) return false;
  by_string_.clear();
  items_.erase(items_.begin() + static_cast<ptrdiff_t>(*index));
  for (size_t i = 0; i < items_.size(); ++i) {
    if (items_[i].first.is_string()) by_string_.emplace(items_[i].first.string(), i);
  }
  return true;
}

void Runtime::fail_budget() const {
  throw RenderError("the template went over its limit of steps and output");
}

Value Runtime::make_list(std::vector<Value> items, List::Shape shape, std::string_view type_name) {
  charge(2 + 2 * items.size());
  return Value::of(&lists_.emplace_back(List{std::move(items), shape, type_name}));
}

Value Runtime::list(std::vector<Value> items) {
  return make_list(std::move(items), List::Shape::kList, "list");
}

Value Runtime::tuple(std::vector<Value> items) {
  return make_list(std::move(items), List::Shape::kTuple, "tuple");
}

Dict& Runtime::new_dict() {
  charge(4);
  return dicts_.emplace_back();
}

Value Runtime::from_json(const nlohmann::ordered_json& json, int depth) {
  if (depth > kMaxNesting) fail_nesting();
  charge(1);
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::null:
      return Value::none();
    case nlohmann::ordered_json::value_t::boolean:
      return Value::of(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value::of(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > INT64_MAX) return Value::of(json.get<double>());
      return Value::of(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_float:
      return Value::of(json.get<double>());
    case nlohmann::ordered_json::value_t::string:
      return text(utf8::sanitize(json.get_ref<const std::string&>()));
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item, depth + 1));
      return list(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      Dict& dict = new_dict();
      charge(4 * json.size());
      for (const auto& [key, item] : json.items()) {
        dict.set(text(utf8::sanitize(key)), from_json(item, depth + 1));
      }
      return Value::of(&dict);
    }
    default:
      throw RenderError("a template variable is of no JSON type");
  }
}

namespace {

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, const JsonStyle& style) : runtime_(runtime), style_(style) {}

  void write(const Value& value, int depth) {
    if (depth > kMaxNesting) fail_nesting();
    runtime_.charge(1);
    if (value.is_none()) {
      out += "null";
    } else if (value.is_bool()) {
      out += value.boolean() ? "true" : "false";
    } else if (value.is_integer()) {
      out += std::to_string(value.integer());
    } else if (value.is_float()) {
      out += number(value.number());
    } else if (value.is_string()) {
      runtime_.charge(value.string().size() / 8);
      text::append_json_string(out, value.string(), style_.ensure_ascii);
    } else if (value.is_list() && value.list().shape <= List::Shape::kTuple) {
      write_sequence(
          '[', ']', value.list().items, depth, [&](const Value& item) { write(item, depth + 1); });
    } else if (value.is_dict()) {
      std::vector<Dict::Item> items = value.dict().items();
      if (style_.sort_keys) {
        std::ranges::stable_sort(
            items, [&](const auto& a, const auto& b) { return less(runtime_, a.first, b.first); });
      }
      write_sequence('{', '}', items, depth, [&](const Dict::Item& item) {
        const std::string name = key(item.first);
        runtime_.charge(name.size() / 8);
        text::append_json_string(out, name, style_.ensure_ascii);
        out += style_.key_separator;
        write(item.second, depth + 1);
      });
    } else {
      throw RenderError("Object of type " + std::string(value.type_name()) +
                        " is not JSON serializable");
    }
  }

  std::string out;

 private:
  static std::string number(double d) {
    if (std::isnan(d)) return "NaN";
    if (std::isinf(d)) return d > 0 ? "Infinity" : "-Infinity";
    return text::float_repr(d);
  }

  static std::string key(const Value& value) {
    if (value.is_string()) return value.string();
    if (value.is_none()) return "null";
    if (value.is_bool()) return value.boolean() ? "true" : "false";
    if (value.is_integer()) return std::to_string(value.integer());
    if (value.is_float()) return number(value.number());
    throw RenderError("keys must be str, int, float, bool or None, not " +
                      std::string(value.type_name()));
  }

  template <typename Items, typename Write>
  void write_sequence(char open, char close, const Items& items, int depth, const Write& item) {
    out += open;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out += style_.item_separator;
      runtime_.charge(style_.item_separator.size() / 32 + style_.key_separator.size() / 32);
      new_line(depth + 1);
      item(items[i]);
    }
    if (!items.empty()) new_line(depth);
    out += close;
  }

  void new_line(int depth) {
    if (!style_.indent) return;
    out += '\n';
    runtime_.charge(static_cast<size_t>(depth) * style_.indent->size() / 32);
    for (int i = 0; i < depth; ++i) out += *style_.indent;
  }

  Runtime& runtime_;
  const JsonStyle& style_;
};

}  // namespace

std::string to_json(Runtime& runtime, const Value& value, const JsonStyle& style) {
  JsonWriter writer(runtime, style);
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace headwater::jinja
