#include "engine/text/jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/text.h"

namespace headwater::jinja {
namespace {

std::string type(const Value& v) {
  std::string quoted(1, '\'');
  return quoted.append(v.type_name()).append(1, '\'');
}

void require_defined(const Value& v) {
  if (v.is_undefined()) throw RenderError(v.undefined_message());
}

[[noreturn]] void fail_overflow() { throw RenderError("an integer is out of range"); }

constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "**"};

Value integer_op(BinaryOp op, int64_t a, int64_t b) {
  int64_t out = 0;
  switch (op) {
    case BinaryOp::kAdd:
      if (__builtin_add_overflow(a, b, &out)) fail_overflow();
      return Value::of(out);
    case BinaryOp::kSub:
      if (__builtin_sub_overflow(a, b, &out)) fail_overflow();
      return Value::of(out);
    case BinaryOp::kMul:
      if (__builtin_mul_overflow(a, b, &out)) fail_overflow();
      return Value::of(out);
    case BinaryOp::kDiv:
      if (b == 0) throw RenderError("division by zero");
      return Value::of(static_cast<double>(a) / static_cast<double>(b));
    case BinaryOp::kFloorDiv:
    case BinaryOp::kMod: {
      if (b == 0) throw RenderError("integer division or modulo by zero");
      if (b == -1)
        return op == BinaryOp::kMod ? Value::of(int64_t{0}) : integer_op(BinaryOp::kSub, 0, a);
      const bool adjust = a % b != 0 && (a % b < 0) != (b < 0);
      return Value::of(op == BinaryOp::kMod ? a % b + (adjust ? b : 0) : a / b - (adjust ? 1 : 0));
    }
    case BinaryOp::kPow: {
      if (b < 0) return Value::of(std::pow(static_cast<double>(a), static_cast<double>(b)));
      if (b > 64 && (a > 1 || a < -1)) fail_overflow();
      if (a == 0 || a == 1) return Value::of(b == 0 ? int64_t{1} : a);
      if (a == -1) return Value::of(b % 2 == 0 ? int64_t{1} : int64_t{-1});
      out = 1;
      for (; b > 0; --b) {
        if (__builtin_mul_overflow(out, a, &out)) fail_overflow();
      }
      return Value::of(out);
    }
  }
  fail_overflow();
}

Value float_op(BinaryOp op, double a, double b) {
  if (b == 0 && (op == BinaryOp::kDiv || op == BinaryOp::kFloorDiv || op == BinaryOp::kMod)) {
    throw RenderError("float division by zero");
  }
  switch (op) {
    case BinaryOp::kAdd:
      return Value::of(a + b);
    case BinaryOp::kSub:
      return Value::of(a - b);
    case BinaryOp::kMul:
      return Value::of(a * b);
    case BinaryOp::kDiv:
      return Value::of(a / b);
    case BinaryOp::kFloorDiv:
      return Value::of(std::floor(a / b));
    case BinaryOp::kMod: {
      const double rest = std::fmod(a, b);
      return Value::of(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
    }
    case BinaryOp::kPow:
      return Value::of(std::pow(a, b));
  }
  fail_overflow();
}

// A list or tuple as the other is.
Value like(Runtime& runtime, const List& other, std::vector<Value> items) {
  return runtime.make_list(std::move(items), other.shape, other.type_name);
}

bool is_plain(const Value& v) {  // a list or tuple
  return v.is_list() && v.list().shape <= List::Shape::kTuple;
}
bool has_places(const Value& v) { return v.is_list() && v.list().has_places(); }

Value repeat(Runtime& runtime, const Value& sequence, int64_t count) {
  count = std::max<int64_t>(count, 0);
  const auto charge = [&](size_t size, size_t per_unit) {
    if (size > 0) runtime.charge(std::min<size_t>(count, SIZE_MAX / 2 / size) * size / per_unit);
    if (size == 0) count = 0;
  };
  if (sequence.is_string()) {
    charge(sequence.string().size(), 32);
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += sequence.string();
    return runtime.text(std::move(out));
  }
  charge(sequence.list().items.size(), 1);
  std::vector<Value> items;
  for (int64_t i = 0; i < count; ++i) {
    items.insert(items.end(), sequence.list().items.begin(), sequence.list().items.end());
  }
  return like(runtime, sequence.list(), std::move(items));
}

// Position in a sequence of `size`, counted from the end if negative.
std::optional<size_t> position(const Value& key, size_t size) {
  const int64_t i = key.integer() < 0 ? key.integer() + static_cast<int64_t>(size) : key.integer();
  if (i < 0 || i >= static_cast<int64_t>(size)) return std::nullopt;
  return static_cast<size_t>(i);
}

}  // namespace

bool equal(Runtime& runtime, const Value& a, const Value& b, int depth) {
  if (depth > kMaxNesting) fail_nesting();
  runtime.charge(1);
  runtime.charge_reading(a);
  if (a.is_list() && b.is_list()) {
    if (&a.list() == &b.list()) return true;
    return a.list().shape == b.list().shape && a.list().shape != List::Shape::kIterator &&
           std::ranges::equal(a.list().items, b.list().items, [&](const Value& x, const Value& y) {
             return equal(runtime, x, y, depth + 1);
           });
  }
  if (a.is_dict() && b.is_dict()) {
    const auto& items = a.dict().items();
    return items.size() == b.dict().items().size() &&
           std::ranges::all_of(items, [&](const Dict::Item& item) {
             const Value* other = b.dict().find(item.first);
             return other && equal(runtime, item.second, *other, depth + 1);
           });
  }
  return a.equal_scalar(b);
}

bool less(Runtime& runtime, const Value& a, const Value& b, int depth) {
  if (depth > kMaxNesting) fail_nesting();
  runtime.charge(1);
  runtime.charge_reading(a);
  if (a.is_integral() && b.is_integral()) return a.integer() < b.integer();
  if (a.is_number() && b.is_number()) return a.number() < b.number();
  if (a.is_string() && b.is_string()) return a.string() < b.string();
  if (is_plain(a) && is_plain(b) && a.list().shape == b.list().shape) {
    const auto& x = a.list().items;
    const auto& y = b.list().items;
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!equal(runtime, x[i], y[i], depth + 1)) return less(runtime, x[i], y[i], depth + 1);
    }
    return x.size() < y.size();
  }
  require_defined(a);
  require_defined(b);
  throw RenderError("'<' not supported between instances of " + type(a) + " and " + type(b));
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  runtime.charge_reading(container);
  if (container.is_string()) {
    if (!item.is_string()) {
      throw RenderError("'in <string>' requires string as left operand, not " +
                        std::string(item.type_name()));
    }
    return container.string().find(item.string()) != std::string::npos;
  }
  if (container.is_list()) {
    auto& items = container.list().items;
    const auto hit = std::ranges::find_if(
        items, [&](const Value& other) { return other.same(item) || equal(runtime, other, item); });
    const bool found = hit != items.end();
    // Looking goes over an iterator as far as it has to.
    if (container.list().shape == List::Shape::kIterator) {
      items.erase(items.begin(), found ? hit + 1 : items.end());
    }
    return found;
  }
  if (container.is_dict()) return container.dict().find(item) != nullptr;
  if (container.is_undefined()) return false;
  throw RenderError("argument of type " + type(container) + " is not iterable");
}

bool compare(Runtime& runtime, CompareOp op, const Value& a, const Value& b) {
  switch (op) {
    case CompareOp::kEq:
      return equal(runtime, a, b);
    case CompareOp::kNe:
      return !equal(runtime, a, b);
    case CompareOp::kLt:
      return less(runtime, a, b);
    case CompareOp::kGt:
      return less(runtime, b, a);
    // For the types less() takes, only NaN makes these differ from "not the other way round".
    case CompareOp::kLe:
      return less(runtime, a, b) || equal(runtime, a, b);
    case CompareOp::kGe:
      return less(runtime, b, a) || equal(runtime, a, b);
    case CompareOp::kIn:
      return contains(runtime, b, a);
    case CompareOp::kNotIn:
      return !contains(runtime, b, a);
  }
  return false;
}

Value binary(Runtime& runtime, BinaryOp op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return integer_op(op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return float_op(op, a.number(), b.number());
  require_defined(a);
  if (op == BinaryOp::kMod && a.is_string()) {
    return runtime.text(percent_format(runtime, a.string(), b));
  }
  require_defined(b);
  if (op == BinaryOp::kAdd && a.is_string() && b.is_string()) {
    return runtime.text(a.string() + b.string());
  }
  if (op == BinaryOp::kAdd && is_plain(a) && is_plain(b) && a.list().shape == b.list().shape) {
    runtime.charge(a.list().items.size() + b.list().items.size());
    std::vector<Value> items = a.list().items;
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    return like(runtime, a.list(), std::move(items));
  }
  if (op == BinaryOp::kMul) {
    if ((a.is_string() || is_plain(a)) && b.is_integral()) return repeat(runtime, a, b.integer());
    if ((b.is_string() || is_plain(b)) && a.is_integral()) return repeat(runtime, b, a.integer());
  }
  throw RenderError("unsupported operand type(s) for " +
                    std::string(kSymbols[static_cast<int>(op)]) + ": " + type(a) + " and " +
                    type(b));
}

Value negate(const Value& value) {
  if (value.is_integral()) return integer_op(BinaryOp::kSub, 0, value.integer());
  if (value.is_float()) return Value::of(-value.number());
  require_defined(value);
  throw RenderError("bad operand type for unary -: " + type(value));
}

std::vector<Value> iterate(Runtime& runtime, const Value& value) {
  std::vector<Value> items;
  if (value.is_list()) {
    const bool once = value.list().shape == List::Shape::kIterator;
    items = once ? std::exchange(value.list().items, {}) : value.list().items;
  } else if (value.is_dict()) {
    for (const auto& item : value.dict().items()) items.push_back(item.first);
  } else if (value.is_string()) {
    for (std::string_view character : text::characters(value.string())) {
      runtime.charge(2);
      items.push_back(Value::of(std::string(character)));
    }
  } else if (!value.is_undefined()) {
    throw RenderError(type(value) + " object is not iterable");
  }
  runtime.charge(1 + items.size());
  return items;
}

int64_t length(const Value& value) {
  if (value.is_string()) return static_cast<int64_t>(text::length(value.string()));
  if (value.is_list() && value.list().shape != List::Shape::kIterator) {
    return static_cast<int64_t>(value.list().items.size());
  }
  if (value.is_dict()) return static_cast<int64_t>(value.dict().items().size());
  if (value.is_undefined()) return 0;
  throw RenderError("object of type " + type(value) + " has no len()");
}

Value get_attribute(Runtime& runtime, const Value& value, std::string_view name) {
  require_defined(value);
  if (value.is_list() && value.list().type_name == "_GroupTuple") {
    if (name == "grouper") return value.list().items[0];
    if (name == "list") return value.list().items[1];
  }
  if (value.is_object()) {
    if (auto found = value.object().attribute(runtime, name)) return *found;
  } else if (const Builtin* method = find_method(value, name)) {
    if (method->function == nullptr) {
      return Value::undefined("access to attribute '" + std::string(name) + "' of " + type(value) +
                              " object is unsafe: it would change it");
    }
    return Value::of(&runtime.new_object<BoundMethod>(*method, value));
  } else if (value.is_dict()) {
    if (const Value* item = value.dict().find(name)) return *item;
  }
  return Value::undefined(type(value) + " object has no attribute '" + std::string(name) + "'");
}

Value get_item(Runtime& runtime, const Value& value, const Value& key) {
  require_defined(value);
  if (value.is_dict()) {
    if (const Value* item = value.dict().find(key)) return *item;
  } else if (has_places(value) && key.is_integral()) {
    if (const auto i = position(key, value.list().items.size())) return value.list().items[*i];
    return Value::undefined(type(value) + " object has no element " +
                            std::to_string(key.integer()));
  } else if (value.is_string() && key.is_integral()) {
    const std::string& s = value.string();
    runtime.charge(1 + s.size() / 32);
    if (const auto i = position(key, text::length(s))) {
      const size_t begin = text::byte_offset(s, *i);
      return Value::of(s.substr(begin, utf8::next(s, begin).length));
    }
    return Value::undefined("'str' object has no element " + std::to_string(key.integer()));
  }
  if (key.is_string()) return get_attribute(runtime, value, key.string());
  return Value::undefined(type(value) + " object has no element " + key.str(runtime));
}

Value slice(Runtime& runtime,
            const Value& value,
            const Value& start,
            const Value& stop,
            const Value& step_value) {
  require_defined(value);
  if (!value.is_string() && !has_places(value)) {
    throw RenderError(type(value) + " object is not sliceable");
  }
  const auto given = [](const Value& v) {
    if (v.is_none() || v.is_undefined()) return false;
    if (!v.is_integral()) throw RenderError("slice indices must be integers or None");
    return true;
  };
  const int64_t step = given(step_value) ? step_value.integer() : 1;
  if (step == 0) throw RenderError("slice step cannot be zero");
  const int64_t size = length(value);
  const auto bound = [&](const Value& v, int64_t absent) {
    if (!given(v)) return absent;
    const int64_t i = v.integer() < 0 ? v.integer() + size : v.integer();
    return step > 0 ? std::clamp<int64_t>(i, 0, size) : std::clamp<int64_t>(i, -1, size - 1);
  };
  const int64_t begin = bound(start, step > 0 ? 0 : size - 1);
  const int64_t end = bound(stop, step > 0 ? size : -1);

  const auto pick = [&](const auto& from, const auto& take) {
    for (int64_t i = begin; step > 0 ? i < end : i > end;) {
      take(from[static_cast<size_t>(i)]);
      if (__builtin_add_overflow(i, step, &i)) break;
    }
  };
  if (value.is_list()) {
    std::vector<Value> items;
    pick(value.list().items, [&](const Value& item) { items.push_back(item); });
    return like(runtime, value.list(), std::move(items));
  }
  const std::string& s = value.string();
  runtime.charge(1 + s.size() / 8);
  if (step == 1) {
    if (begin >= end) return Value::of(std::string());
    const size_t first = text::byte_offset(s, static_cast<size_t>(begin));
    const size_t last = text::byte_offset(s, static_cast<size_t>(end));
    return runtime.text(s.substr(first, last - first));
  }
  std::string out;
  pick(text::characters(s), [&](std::string_view character) { out += character; });
  return runtime.text(std::move(out));
}

}  // namespace headwater::jinja
