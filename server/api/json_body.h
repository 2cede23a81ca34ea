// json_body: the text of a request body as JSON, bounded before it is built. Pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/base/status.h"

namespace headwater::api {

// Ordered, because chat templates print objects in the client's order.
using Json = nlohmann::ordered_json;

inline constexpr int kMaxJsonDepth = 64;
// Lookup and insertion in an ordered object are linear.
inline constexpr int kMaxJsonMembers = 4096;

// kInvalidArgument with line and column: broken JSON, bad UTF-8, nested or filled beyond the bounds
// above, or not an object.
Result<Json> parse_body(std::string_view text);

// One line, valid UTF-8 whatever strings the value holds.
std::string to_text(const Json& value);

}  // namespace headwater::api
