#include "server/http/routes.h"

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "server/api/error_map.h"
#include "server/api/json_body.h"
#include "server/api/models.h"
#include "server/api/tokenize.h"
#include "server/http/generate.h"

namespace headwater::http {
namespace {

using Handler = void (*)(const HandlerContext&, const std::shared_ptr<Exchange>&);

void reply_json(Exchange& exchange, const Result<api::Json>& result) {
  if (!result.ok()) return exchange.reply(error_reply(result.status()));
  exchange.reply({200, api::to_text(result.value())});
}

void models(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  reply_json(*exchange, api::list_models(context.service));
}

constexpr std::string_view kModelPrefix = "/v1/models/";

void model(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  reply_json(*exchange,
             api::get_model(context.service, exchange->request().path.substr(kModelPrefix.size())));
}

void tokenize(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  const Result<api::Json> body = api::parse_body(exchange->request().body);
  reply_json(*exchange, body.ok() ? api::tokenize(context.service, body.value()) : body);
}

void detokenize(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  const Result<api::Json> body = api::parse_body(exchange->request().body);
  reply_json(*exchange, body.ok() ? api::detokenize(context.service, body.value()) : body);
}

// The process answers; says nothing about the model.
void livez(const HandlerContext&, const std::shared_ptr<Exchange>& exchange) {
  exchange->reply({200, "ok\n", "text/plain; charset=utf-8"});
}

void readyz(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  const ServerState state = context.service.lifecycle().state();
  exchange->reply({state == ServerState::kReady ? 200 : 503,
                   std::string(state_name(state)) + "\n",
                   "text/plain; charset=utf-8"});
}

void health(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  if (Status status = context.service.health(); !status.ok()) {
    return exchange->reply(error_reply(status));
  }
  exchange->reply({200, R"({"status":"ok"})"});
}

void metrics(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  std::string text;
  if (const Engine* engine = context.service.engine()) {
    text = engine_metrics_text(
        engine->stats(), engine->model_info().id, context.service.config().deprecated_metrics);
  }
  text += context.metrics.text() + process_metrics_text();
  exchange->reply({200, std::move(text), "text/plain; version=0.0.4; charset=utf-8"});
}

void version(const HandlerContext&, const std::shared_ptr<Exchange>& exchange) {
  exchange->reply({200, R"({"version":")" HEADWATER_VERSION R"("})"});
}

struct Route {
  std::string_view method;
  std::string_view path;  // a trailing '*' stands for the rest, at least one character
  Handler handler;
  bool needs_key;
};

constexpr Route kRoutes[] = {
    {"POST", "/v1/chat/completions", chat_completions, true},
    {"POST", "/v1/completions", completions, true},
    {"GET", "/v1/models", models, true},
    {"GET", "/v1/models/*", model, true},
    {"POST", "/tokenize", tokenize, true},
    {"POST", "/detokenize", detokenize, true},
    {"GET", "/health", health, false},
    {"GET", "/livez", livez, false},
    {"GET", "/readyz", readyz, false},
    {"GET", "/metrics", metrics, false},
    {"GET", "/version", version, false},
};

bool matches(std::string_view pattern, std::string_view path) {
  if (pattern.back() != '*') return path == pattern;
  pattern.remove_suffix(1);
  return path.starts_with(pattern) && path.size() > pattern.size();
}

// Takes as long for a wrong key as for the right one.
bool equal_secrets(std::string_view given, std::string_view expected) {
  unsigned difference = given.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < expected.size(); ++i) {
    const char c = i < given.size() ? given[i] : '\0';
    difference |= static_cast<unsigned char>(c ^ expected[i]);
  }
  return difference == 0;
}

bool authorized(const std::string& key, std::string_view authorization) {
  constexpr std::string_view kBearer = "Bearer ";
  if (key.empty()) return true;
  if (!authorization.starts_with(kBearer)) return false;
  return equal_secrets(authorization.substr(kBearer.size()), key);
}

HttpReply no_route(const HttpRequest& request, const std::string& allowed) {
  if (request.method == "OPTIONS" && !allowed.empty()) {
    return {204, "", "", {{"Allow", allowed + ", OPTIONS"}}};
  }
  if (allowed.empty()) {
    return {404,
            api::error_body(
                {404, "not_found_error", nullptr, 0}, "there is no path " + request.path, "")};
  }
  return {
      405,
      api::error_body({405, "invalid_request_error", "method_not_allowed", 0},
                      request.path + " does not take " + request.method + "; it takes " + allowed,
                      ""),
      "application/json",
      {{"Allow", allowed + ", OPTIONS"}}};
}

}  // namespace

HttpReply error_reply(const Status& status, const api::ContextNumbers* numbers) {
  const api::ErrorInfo info = api::map_error(status);
  HttpReply reply{info.http_status, api::error_body(status, numbers)};
  if (info.retry_after_s > 0) {
    reply.headers.emplace_back("Retry-After", std::to_string(info.retry_after_s));
  }
  return reply;
}

void dispatch(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  const HttpRequest& request = exchange->request();
  std::string allowed;
  for (const Route& route : kRoutes) {
    if (!matches(route.path, request.path)) continue;
    exchange->set_route(std::string(route.path));
    if (route.method != request.method) {
      if (!allowed.empty()) allowed += ", ";
      allowed += route.method;
      if (route.method == "GET") allowed += ", HEAD";
      continue;
    }
    if (route.needs_key && !authorized(context.service.config().api_key, request.authorization)) {
      return exchange->reply(
          {401,
           api::error_body({401, "authentication_error", "invalid_api_key", 0},
                           "a valid API key is needed: send 'Authorization: Bearer KEY'",
                           ""),
           "application/json",
           {{"WWW-Authenticate", "Bearer"}}});
    }
    return route.handler(context, exchange);
  }
  exchange->reply(no_route(request, allowed));
}

}  // namespace headwater::http
