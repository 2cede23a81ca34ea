#include <ctime>
#include <string>

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
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    runtime.charge(1);
    items.push_back(Value::of(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return runtime.list(std::move(items));
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
    if (!value.is_dict()) fail_arguments("dict() takes dicts and keyword arguments");
    for (const auto& [key, item] : value.dict().items()) dict.set(key, item);
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
