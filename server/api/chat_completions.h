// /v1/chat/completions: what the endpoint means. Functions are thread-safe.
#pragma once

#include "server/api/responder.h"
#include "server/api/service.h"

namespace headwater::api {

// Parses, checks the model's name, applies the chat template and tokenizes. Needs an attached
// engine; ask Service::can_accept() first.
Result<PreparedGeneration> prepare_chat_completion(const Service& service, const Json& body);

}  // namespace headwater::api
