// routes: THE table of paths. Called on the exchange's executor (an I/O thread).
#pragma once

#include <memory>

#include "server/api/error_map.h"
#include "server/api/service.h"
#include "server/http/exchange.h"
#include "server/metrics.h"

namespace headwater::http {

// What handlers work on. Not owned; outlives every exchange.
struct HandlerContext {
  const api::Service& service;
  HttpMetrics& metrics;
};

// Finds the handler and runs it. The exchange ends now or later, always with a reply or a stream:
// 404 for an unknown path, 405 with Allow for a wrong method, 401 without the key.
void dispatch(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange);

HttpReply error_reply(const Status& status, const api::ContextNumbers* numbers = nullptr);

}  // namespace headwater::http
