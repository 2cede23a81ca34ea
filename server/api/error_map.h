// error_map: Status -> what a client sees. One table for HTTP and gRPC. Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/base/status.h"

namespace headwater::api {

struct ErrorInfo {
  int http_status = 500;
  const char* type = "server_error";
  const char* code = nullptr;  // nullptr: JSON null
  int retry_after_s = 0;       // 0: no Retry-After
};

ErrorInfo map_error(const Status& status);

// What a client that handles kContextLength wants to compute with.
struct ContextNumbers {
  int64_t prompt_tokens = 0;
  int64_t context_tokens = 0;
};

// {"error": {message, type, param, code}}: always all four keys, valid UTF-8 whatever the message.
std::string error_body(const ErrorInfo& info, const std::string& message, const std::string& param);
// numbers: added as n_prompt_tokens and n_ctx when the status is kContextLength; may be null.
std::string error_body(const Status& status, const ContextNumbers* numbers = nullptr);

}  // namespace headwater::api
