// The filters, tests, methods and functions a template can use, as literal tables, each row a
// function of the piped or bound value and the arguments.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "engine/text/jinja/value.h"

namespace headwater::jinja {

struct Builtin {
  std::string_view name;
  // nullptr: it is there, but would change its object, so that a template must not use it.
  Value (*function)(Runtime& runtime, const Value& self, const Arguments& arguments);
};

// nullptr: there is none of that name.
const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);  // its function gives a bool
const Builtin* find_method(const Value& self, std::string_view name);
const Builtin* find_global(std::string_view name);

// A method together with its object, or a function.
class BoundMethod final : public Object {
 public:
  BoundMethod(const Builtin& builtin, Value self) : builtin_(builtin), self_(std::move(self)) {}
  std::string_view type_name() const override { return "builtin_function_or_method"; }
  bool is_callable() const override { return true; }
  Value call(Runtime& runtime, const Arguments& arguments) override {
    runtime.charge_reading(self_);
    return builtin_.function(runtime, self_, arguments);
  }

 private:
  const Builtin& builtin_;  // of a literal table
  Value self_;
};

class Namespace final : public Object {
 public:
  std::string_view type_name() const override { return "Namespace"; }
  std::string repr(Runtime& runtime, int depth) override;
  std::optional<Value> attribute(Runtime& runtime, std::string_view name) override;
  bool set_attribute(std::string_view name, const Value& value) override;

 private:
  Dict attributes_;
};

// Arguments by position or name; those not given are undefined. RenderError: too many, or a name
// that is not among `names`.
template <size_t N>
std::array<Value, N> bind(const Arguments& arguments, const std::string_view (&names)[N]);
void require_no_arguments(const Arguments& arguments);

int64_t to_integer(const Value& value, std::string_view what);  // RenderError: not an integer
const std::string& to_text(const Value& value, std::string_view what);

// format % values, and format.format(arguments). next counts the fields without a name of the
// formats that enclose this one.
std::string percent_format(Runtime& runtime, std::string_view format, const Value& values);
std::string brace_format(Runtime& runtime,
                         std::string_view format,
                         const Arguments& arguments,
                         size_t* next = nullptr,
                         int depth = 0);

[[noreturn]] void fail_arguments(std::string_view what);

template <size_t N>
std::array<Value, N> bind(const Arguments& arguments, const std::string_view (&names)[N]) {
  std::array<Value, N> out;
  if (arguments.positional.size() > N) fail_arguments("takes at most " + std::to_string(N));
  for (size_t i = 0; i < arguments.positional.size(); ++i) out[i] = arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    size_t i = 0;
    while (i < N && names[i] != name) ++i;
    if (i == N) fail_arguments("has no argument \"" + name + "\"");
    out[i] = value;
  }
  return out;
}

}  // namespace headwater::jinja
