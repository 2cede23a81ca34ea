// /tokenize and /detokenize, in vLLM's and llama-server's shapes. Thread-safe.
#pragma once

#include "server/api/json_body.h"
#include "server/api/service.h"

namespace headwater::api {

// Text never becomes a control token; messages go through the chat template. kUnavailable while the
// model loads.
Result<Json> tokenize(const Service& service, const Json& body);
Result<Json> detokenize(const Service& service, const Json& body);

}  // namespace headwater::api
