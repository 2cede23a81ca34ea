// generate: the endpoints that run the model, streamed or whole. Called on the exchange's executor.
#pragma once

#include <memory>

#include "server/http/routes.h"

namespace headwater::http {

void chat_completions(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange);
void completions(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange);

}  // namespace headwater::http
