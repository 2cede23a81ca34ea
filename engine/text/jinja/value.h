// Values of a template, with Python's meaning. Containers belong to the Runtime of one render and
// are freed together with it: cycles and deep nesting cost nothing. Strings are valid UTF-8.
#pragma once

#include <concepts>
#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace headwater::jinja {

// Anything a render can fail with; becomes kInvalidArgument.
struct RenderError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Value;
class Runtime;
struct List;
struct Dict;

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Things with attributes or calls: namespaces, loops, macros, bound methods, functions.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string_view type_name() const = 0;
  virtual std::string repr(Runtime& runtime, int depth);
  virtual std::optional<Value> attribute(Runtime& runtime, std::string_view name);
  virtual bool set_attribute(std::string_view name, const Value& value);  // false: read-only
  virtual bool is_callable() const { return false; }
  virtual Value call(Runtime& runtime, const Arguments& arguments);
};

class Value {
 public:
  using Str = std::shared_ptr<const std::string>;
  struct Undefined {
    Str message;  // why, for errors; may be null
  };
  struct None {};

  Value() = default;  // undefined
  static Value undefined(std::string message);
  static Value none() { return Value(None{}); }
  static Value of(bool b) { return Value(b); }
  static Value of(int64_t i) { return Value(i); }
  static Value of(double d) { return Value(d); }
  static Value of(List* list) { return Value(list); }
  static Value of(Dict* dict) { return Value(dict); }
  static Value of(std::derived_from<Object> auto* object) {
    return Value(static_cast<Object*>(object));
  }
  static Value of(std::string s) {
    return Value(std::make_shared<const std::string>(std::move(s)));
  }
  static Value of(const char*) = delete;

  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_bool() const { return is<bool>(); }
  bool is_integer() const { return is<int64_t>(); }
  bool is_float() const { return is<double>(); }
  bool is_string() const { return is<Str>(); }
  bool is_list() const { return is<List*>(); }  // of any shape
  bool is_dict() const { return is<Dict*>(); }
  bool is_object() const { return is<Object*>(); }
  bool is_number() const { return is_bool() || is_integer() || is_float(); }
  bool is_integral() const { return is_bool() || is_integer(); }

  const std::string& string() const { return *std::get<Str>(state_); }
  List& list() const { return *std::get<List*>(state_); }
  Dict& dict() const { return *std::get<Dict*>(state_); }
  Object& object() const { return *std::get<Object*>(state_); }
  bool boolean() const { return std::get<bool>(state_); }
  int64_t integer() const { return is_bool() ? boolean() : std::get<int64_t>(state_); }
  double number() const { return is_float() ? std::get<double>(state_) : double(integer()); }
  std::string undefined_message() const;

  std::string_view type_name() const;  // as Python spells it
  bool truthy() const;
  std::string str(Runtime& runtime) const;                    // str(x); bounded in depth, charged
  void append_str(Runtime& runtime, std::string& out) const;  // the same, onto a text
  void append_repr(Runtime& runtime, std::string& out, int depth = 0) const;
  bool same(const Value& other) const;          // x is y
  bool equal_scalar(const Value& other) const;  // x == y, where containers equal nothing

 private:
  template <typename T>
  explicit Value(T state) : state_(std::move(state)) {}
  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(state_);
  }
  std::variant<Undefined, None, bool, int64_t, double, Str, List*, Dict*, Object*> state_;
};

struct List {
  enum class Shape : uint8_t {
    kList,
    kTuple,
    kRange,
    kView,      // of a dict: has a length, but no places
    kIterator,  // what lazy filters give: gone over once, without length or places
  };
  std::vector<Value> items;
  Shape shape = Shape::kList;
  std::string_view type_name = "list";

  bool is_tuple() const { return shape == Shape::kTuple; }
  bool has_places() const { return shape <= Shape::kRange; }
};

// In order of insertion. Keys: strings (indexed) and the rarer scalars, found by comparing.
struct Dict {
  using Item = std::pair<Value, Value>;

  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(const Value& key, Value value);  // RenderError: a key that cannot be one
  bool erase(const Value& key);
  const std::vector<Item>& items() const { return items_; }

 private:
  std::optional<size_t> index_of(const Value& key) const;
  std::vector<Item> items_;
  std::unordered_map<std::string_view, size_t> by_string_;  // keys live in items_
};

// Containers nested deeper than this are refused when they are printed, compared or converted.
inline constexpr int kMaxNesting = 100;
[[noreturn]] void fail_nesting();

// One render's memory and budget.
class Runtime {
 public:
  Runtime(int64_t max_units, int64_t now) : units_left_(max_units), now_(now) {}
  Runtime(const Runtime&) = delete;

  // A unit is a step of evaluation, or 32 bytes of text, or an element of a container, made or
  // gone over.
  void charge(size_t units) {
    if (units > static_cast<size_t>(units_left_)) fail_budget();
    units_left_ -= static_cast<int64_t>(units);
  }
  // For going over a text once.
  void charge_reading(const Value& value) {
    if (value.is_string()) charge(value.string().size() / 32);
  }
  int64_t now() const { return now_; }  // seconds since 1970

  Value text(std::string s) {
    charge(1 + s.size() / 32);
    return Value::of(std::move(s));
  }
  Value list(std::vector<Value> items);
  Value tuple(std::vector<Value> items);
  Value make_list(std::vector<Value> items, List::Shape shape, std::string_view type_name);
  Value iterator(std::vector<Value> items) {
    return make_list(std::move(items), List::Shape::kIterator, "generator");
  }
  Dict& new_dict();
  template <typename T, typename... Args>
  T& new_object(Args&&... args) {
    charge(4);
    auto owned = std::make_unique<T>(std::forward<Args>(args)...);
    T& object = *owned;
    objects_.push_back(std::move(owned));
    return object;
  }
  Value from_json(const nlohmann::ordered_json& json, int depth = 0);

 private:
  [[noreturn]] void fail_budget() const;

  int64_t units_left_;
  int64_t now_;
  std::deque<List> lists_;
  std::deque<Dict> dicts_;
  std::vector<std::unique_ptr<Object>> objects_;
};

struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;  // the text of one level; nullopt: one line
  std::string item_separator = ", ", key_separator = ": ";
  bool sort_keys = false;
};
// As Python's json.dumps. RenderError: a value JSON has no spelling for.
std::string to_json(Runtime& runtime, const Value& value, const JsonStyle& style);

}  // namespace headwater::jinja
