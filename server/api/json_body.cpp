#include "server/api/json_body.h"

#include <array>
#include <string>

namespace headwater::api {
namespace {

// Counts nesting and members without building anything. Broken input is left to the parser.
Status check_bounds(std::string_view text) {
  std::array<int, kMaxJsonDepth + 1> members{};
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) {
        return invalid_argument("the body nests deeper than " + std::to_string(kMaxJsonDepth) +
                                " levels at byte " + std::to_string(i + 1));
      }
      members[static_cast<size_t>(depth)] = 0;
    } else if (c == '}' || c == ']') {
      if (--depth < 0) return Status::Ok();
    } else if (c == ':' && ++members[static_cast<size_t>(depth)] > kMaxJsonMembers) {
      return invalid_argument("the body has an object with more than " +
                              std::to_string(kMaxJsonMembers) + " members at byte " +
                              std::to_string(i + 1));
    }
  }
  return Status::Ok();
}

// "[json.exception.parse_error.101] parse error at ..." without the library's own prefix.
std::string readable(const char* what) {
  const std::string_view text(what);
  const size_t end = text.find("] ");
  return std::string(end == std::string_view::npos ? text : text.substr(end + 2));
}

}  // namespace

Result<Json> parse_body(std::string_view text) {
  if (Status status = check_bounds(text); !status.ok()) return status;
  try {
    Json body = Json::parse(text.begin(), text.end());
    if (!body.is_object()) {
      return invalid_argument(std::string("the body must be a JSON object, got ") +
                              body.type_name());
    }
    return body;
  } catch (const Json::exception& e) {
    return invalid_argument("the body is not valid JSON: " + readable(e.what()));
  }
}

std::string to_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace headwater::api
