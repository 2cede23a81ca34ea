#include <ctime>
#include <string>
#include <utility>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/operators.h"
#include "engine/text/jinja/text.h"

namespace headwater::jinja {
namespace {

Value range(Runtime& runtime, const Value&, const Arguments& arguments) {
  const auto [first, second, third] = bind(arguments, {"start", "stop", "step"});
  const bool one = second.is_undefined();
  const int64_t start = one ? 0 : to_integer(first, "range");
  const int64_t stop = to_integer(one ? first : second, "range");
  const int64_t step = third.is_undefined() ? 1 : to_integer(third, "range");
  if (step == 0) throw RenderError("range() arg 3 must not be zero");
  constexpr int64_t kMaxItems = 100'000;  // jinja2's sandbox
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    runtime.charge(1);
    items.push_back(Value::of(i));
    if (std::ssize(items) > kMaxItems) throw RenderError("Range too big.");
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return runtime.make_list(std::move(items), List::Shape::kRange, "range");
}

// cycler(a, b): next() gives one after the other.
class Cycler final : public Object {
 public:
  explicit Cycler(std::vector<Value> items) : items_(std::move(items)) {}
  std::string_view type_name() const override { return "Cycler"; }
  std::optional<Value> attribute(Runtime& runtime, std::string_view name) override {
    if (name == "current") return items_[next_];
    if (name == "pos") return Value::of(static_cast<int64_t>(next_));
    if (name == "next") return Value::of(&runtime.new_object<Method>(*this, true));
    if (name == "reset") return Value::of(&runtime.new_object<Method>(*this, false));
    return std::nullopt;
  }

 private:
  class Method final : public Object {
   public:
    Method(Cycler& cycler, bool is_next) : cycler_(cycler), is_next_(is_next) {}
    std::string_view type_name() const override { return "method"; }
    bool is_callable() const override { return true; }
    Value call(Runtime&, const Arguments& arguments) override {
      require_no_arguments(arguments);
      if (!is_next_) {
        cycler_.next_ = 0;
        return Value::none();
      }
      const Value item = cycler_.items_[cycler_.next_];
      cycler_.next_ = (cycler_.next_ + 1) % cycler_.items_.size();
      return item;
    }

   private:
    Cycler& cycler_;
    bool is_next_;
  };

  std::vector<Value> items_;
  size_t next_ = 0;
};

// joiner(text): nothing the first time, then the text.
class Joiner final : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  std::string_view type_name() const override { return "Joiner"; }
  bool is_callable() const override { return true; }
  Value call(Runtime& runtime, const Arguments& arguments) override {
    require_no_arguments(arguments);
    return std::exchange(used_, true) ? separator_ : runtime.text("");
  }

 private:
  Value separator_;
  bool used_ = false;
};

Value make_cycler(Runtime& runtime, const Value&, const Arguments& arguments) {
  if (!arguments.named.empty() || arguments.positional.empty()) {
    throw RenderError("at least one item has to be provided");
  }
  return Value::of(&runtime.new_object<Cycler>(arguments.positional));
}

Value make_joiner(Runtime& runtime, const Value&, const Arguments& arguments) {
  const auto [separator] = bind(arguments, {"sep"});
  return Value::of(
      &runtime.new_object<Joiner>(separator.is_undefined() ? runtime.text(", ") : separator));
}

Value make_namespace(Runtime& runtime, const Value&, const Arguments& arguments) {
  auto& ns = runtime.new_object<Namespace>();
  for (const Value& value : arguments.positional) {
    if (!value.is_dict()) fail_arguments("namespace() takes dicts and keyword arguments");
    for (const auto& [key, item] : value.dict().items()) ns.set_attribute(key.str(runtime), item);
  }
  for (const auto& [name, value] : arguments.named) ns.set_attribute(name, value);
  return Value::of(&ns);
}

Value make_dict(Runtime& runtime, const Value&, const Arguments& arguments) {
  Dict& dict = runtime.new_dict();
  for (const Value& value : arguments.positional) {
    if (value.is_dict()) {
      runtime.charge(4 * value.dict().items().size());
      for (const auto& [key, item] : value.dict().items()) dict.set(key, item);
      continue;
    }
    for (const Value& pair : iterate(runtime, value)) {
      const std::vector<Value> parts = iterate(runtime, pair);
      if (parts.size() != 2) throw RenderError("dict() takes dicts and pairs");
      dict.set(parts[0], parts[1]);
    }
  }
  for (const auto& [name, value] : arguments.named) dict.set(Value::of(name), value);
  return Value::of(&dict);
}

Value raise_exception(Runtime& runtime, const Value&, const Arguments& arguments) {
  const auto [message] = bind(arguments, {"message"});
  throw RenderError(message.str(runtime));
}

Value strftime_now(Runtime& runtime, const Value&, const Arguments& arguments) {
  const auto [format] = bind(arguments, {"format"});
  const std::string& pattern = to_text(format, "strftime_now");
  constexpr size_t kMaxBytes = 1024;
  if (pattern.size() > kMaxBytes / 8) fail_arguments("strftime_now: the format is too long");
  const std::time_t now = runtime.now();
  std::tm local{};
  localtime_r(&now, &local);
  std::string out(kMaxBytes, '\0');
  out.resize(std::strftime(out.data(), out.size(), pattern.c_str(), &local));
  return runtime.text(utf8::sanitize(out));
}

constexpr Builtin kGlobals[] = {
    {"range", range},
    {"cycler", make_cycler},
    {"joiner", make_joiner},
    {"namespace", make_namespace},
    {"dict", make_dict},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
};

}  // namespace

const Builtin* find_global(std::string_view name) {
  for (const Builtin& global : kGlobals) {
    if (global.name == name) return &global;
  }
  return nullptr;
}

std::optional<Value> Namespace::attribute(Runtime&, std::string_view name) {
  const Value* value = attributes_.find(name);
  return value ? std::optional(*value) : std::nullopt;
}

std::string Namespace::repr(Runtime& runtime, int depth) {
  std::string out = "<Namespace ";
  Value::of(&attributes_).append_repr(runtime, out, depth + 1);
  return out + ">";
}

bool Namespace::set_attribute(std::string_view name, const Value& value) {
  attributes_.set(Value::of(std::string(name)), value);
  return true;
}

void fail_arguments(std::string_view what) {
  throw RenderError("a call's arguments are wrong: it " + std::string(what));
}

void require_no_arguments(const Arguments& arguments) {
  if (!arguments.positional.empty() || !arguments.named.empty()) {
    fail_arguments("takes no arguments");
  }
}

int64_t to_integer(const Value& value, std::string_view what) {
  if (value.is_undefined()) throw RenderError(value.undefined_message());
  if (!value.is_integral()) {
    throw RenderError(std::string(what) + ": expected an integer, got '" +
                      std::string(value.type_name()) + "'");
  }
  return value.integer();
}

const std::string& to_text(const Value& value, std::string_view what) {
  if (value.is_undefined()) throw RenderError(value.undefined_message());
  if (!value.is_string()) {
    throw RenderError(std::string(what) + ": expected a string, got '" +
                      std::string(value.type_name()) + "'");
  }
  return value.string();
}

}  // namespace headwater::jinja
