#include <cmath>

#include "engine/text/jinja/builtins.h"
#include "engine/text/jinja/operators.h"
#include "engine/text/jinja/text.h"

namespace headwater::jinja {
namespace {

template <bool (*kPredicate)(const Value&)>
Value unary(Runtime&, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  return Value::of(kPredicate(self));
}

template <CompareOp kOp>
Value comparison(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [other] = bind(arguments, {"other"});
  return Value::of(compare(runtime, kOp, self, other));
}

bool is_defined(const Value& v) { return !v.is_undefined(); }
bool is_undefined(const Value& v) { return v.is_undefined(); }
bool is_none(const Value& v) { return v.is_none(); }
bool is_boolean(const Value& v) { return v.is_bool(); }
bool is_true(const Value& v) { return v.is_bool() && v.boolean(); }
bool is_false(const Value& v) { return v.is_bool() && !v.boolean(); }
bool is_integer(const Value& v) { return v.is_integer(); }
bool is_float(const Value& v) { return v.is_float(); }
bool is_number(const Value& v) { return v.is_number(); }
bool is_string(const Value& v) { return v.is_string(); }
bool is_mapping(const Value& v) { return v.is_dict(); }
bool is_callable(const Value& v) { return v.is_object() && v.object().is_callable(); }
bool is_iterable(const Value& v) {
  return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined();
}
bool is_sequence(const Value& v) {
  return is_iterable(v) && (!v.is_list() || v.list().has_places());
}
bool is_filter(const Value& v) { return v.is_string() && find_filter(v.string()); }
bool is_test(const Value& v) { return v.is_string() && find_test(v.string()); }
// No template text is markup: nothing is escaped automatically.
bool is_escaped(const Value&) { return false; }

// In this case and with letters at all.
template <std::string (*kThis)(std::string_view), std::string (*kOther)(std::string_view)>
Value has_case(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  const std::string s = self.str(runtime);
  return Value::of(kThis(s) == s && kOther(s) != s);
}

Value divisible_by(Runtime& runtime, const Value& self, const Arguments& arguments) {
  const auto [num] = bind(arguments, {"num"});
  return Value::of(binary(runtime, BinaryOp::kMod, self, num).equal_scalar(Value::of(int64_t{0})));
}

template <int64_t kRest>
Value has_parity(Runtime& runtime, const Value& self, const Arguments& arguments) {
  require_no_arguments(arguments);
  const Value rest = binary(runtime, BinaryOp::kMod, self, Value::of(int64_t{2}));
  return Value::of(rest.equal_scalar(Value::of(kRest)));
}

Value same_as(Runtime&, const Value& self, const Arguments& arguments) {
  const auto [other] = bind(arguments, {"other"});
  return Value::of(self.same(other));
}

constexpr Builtin kTests[] = {
    {"defined", unary<is_defined>},
    {"undefined", unary<is_undefined>},
    {"none", unary<is_none>},
    {"boolean", unary<is_boolean>},
    {"true", unary<is_true>},
    {"false", unary<is_false>},
    {"integer", unary<is_integer>},
    {"float", unary<is_float>},
    {"number", unary<is_number>},
    {"string", unary<is_string>},
    {"mapping", unary<is_mapping>},
    {"callable", unary<is_callable>},
    {"iterable", unary<is_iterable>},
    {"sequence", unary<is_sequence>},
    {"even", has_parity<0>},
    {"odd", has_parity<1>},
    {"upper", has_case<text::upper, text::lower>},
    {"lower", has_case<text::lower, text::upper>},
    {"filter", unary<is_filter>},
    {"test", unary<is_test>},
    {"escaped", unary<is_escaped>},
    {"divisibleby", divisible_by},
    {"sameas", same_as},
    {"in", comparison<CompareOp::kIn>},
    {"eq", comparison<CompareOp::kEq>},
    {"equalto", comparison<CompareOp::kEq>},
    {"==", comparison<CompareOp::kEq>},
    {"ne", comparison<CompareOp::kNe>},
    {"!=", comparison<CompareOp::kNe>},
    {"lt", comparison<CompareOp::kLt>},
    {"lessthan", comparison<CompareOp::kLt>},
    {"<", comparison<CompareOp::kLt>},
    {"le", comparison<CompareOp::kLe>},
    {"<=", comparison<CompareOp::kLe>},
    {"gt", comparison<CompareOp::kGt>},
    {"greaterthan", comparison<CompareOp::kGt>},
    {">", comparison<CompareOp::kGt>},
    {"ge", comparison<CompareOp::kGe>},
    {">=", comparison<CompareOp::kGe>},
};

}  // namespace

const Builtin* find_test(std::string_view name) {
  for (const Builtin& test : kTests) {
    if (test.name == name) return &test;
  }
  return nullptr;
}

}  // namespace headwater::jinja
