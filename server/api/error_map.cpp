#include "server/api/error_map.h"

#include <nlohmann/json.hpp>

namespace headwater::api {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kQueueFullRetrySeconds = 1;
constexpr int kUnavailableRetrySeconds = 5;

Json nullable(const char* text) { return text == nullptr ? Json(nullptr) : Json(text); }

Json error_json(const ErrorInfo& info, const std::string& message, const std::string& param) {
  return {{"message", message},
          {"type", info.type},
          {"param", param.empty() ? Json(nullptr) : Json(param)},
          {"code", nullable(info.code)}};
}

std::string wrap(Json error) {
  Json body = Json::object();
  body["error"] = std::move(error);
  return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

ErrorInfo map_error(const Status& status) {
  switch (status.code) {
    case StatusCode::kOk:
      return {200, "", nullptr, 0};
    case StatusCode::kInvalidArgument:
      return {400, "invalid_request_error", nullptr, 0};
    case StatusCode::kContextLength:
      return {400, "invalid_request_error", "context_length_exceeded", 0};
    case StatusCode::kNotFound:
      return {404, "not_found_error", status.param == "model" ? "model_not_found" : nullptr, 0};
    case StatusCode::kResourceExhausted:
      return {429, "rate_limit_error", "rate_limit_exceeded", kQueueFullRetrySeconds};
    case StatusCode::kUnavailable:
      return {503, "unavailable_error", "overloaded", kUnavailableRetrySeconds};
    case StatusCode::kDeadlineExceeded:
      return {504, "timeout_error", "deadline_exceeded", 0};
    case StatusCode::kCancelled:
      return {499, "cancelled_error", "request_cancelled", 0};
    case StatusCode::kInternal:
      break;
  }
  return {500, "server_error", nullptr, 0};
}

std::string error_body(const ErrorInfo& info,
                       const std::string& message,
                       const std::string& param) {
  return wrap(error_json(info, message, param));
}

std::string error_body(const Status& status, const ContextNumbers* numbers) {
  Json error = error_json(map_error(status), status.message, status.param);
  if (status.code == StatusCode::kContextLength && numbers != nullptr) {
    error["n_prompt_tokens"] = numbers->prompt_tokens;
    error["n_ctx"] = numbers->context_tokens;
  }
  return wrap(std::move(error));
}

}  // namespace headwater::api
