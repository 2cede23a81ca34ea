// Python's operators over template values. All throw RenderError where Python raises.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/text/jinja/value.h"

namespace headwater::jinja {

enum class BinaryOp : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
enum class CompareOp : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

bool equal(Runtime& runtime, const Value& a, const Value& b, int depth = 0);
bool less(Runtime& runtime, const Value& a, const Value& b, int depth = 0);
bool contains(Runtime& runtime, const Value& container, const Value& item);
bool compare(Runtime& runtime, CompareOp op, const Value& a, const Value& b);
Value binary(Runtime& runtime, BinaryOp op, const Value& a, const Value& b);
Value negate(const Value& value);

// What a loop goes over: items, keys of a dict, characters of a text.
std::vector<Value> iterate(Runtime& runtime, const Value& value);
int64_t length(const Value& value);

// value.name, where methods come before keys; and value[key], the other way round.
Value get_attribute(Runtime& runtime, const Value& value, std::string_view name);
Value get_item(Runtime& runtime, const Value& value, const Value& key);
// value[start:stop:step]; undefined or none bounds are absent.
Value slice(
    Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step);

}  // namespace headwater::jinja
