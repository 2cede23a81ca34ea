#include "server/http/generate.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "engine/log.h"
#include "server/api/chat_completions.h"
#include "server/api/completions.h"
#include "server/api/error_map.h"

namespace headwater::http {
namespace {

using Prepare = Result<api::PreparedGeneration> (*)(const api::Service&, const api::Json&);

// One generation that answers one exchange. Held by the callbacks of its Generation.
class GenerationReply final {
 public:
  GenerationReply(std::shared_ptr<Exchange> exchange,
                  std::unique_ptr<api::Responder> responder,
                  bool stream,
                  api::ContextNumbers numbers)
      : exchange_(std::move(exchange)),
        responder_(std::move(responder)),
        stream_(stream),
        numbers_(numbers) {}

  void on_delta(api::Delta delta) {
    for (const std::string& chunk : responder_->on_delta(std::move(delta))) {
      exchange_->send_event(chunk);
    }
  }

  void on_done(const Status& status, const api::GenerationUsage& usage) {
    log::info("http",
              "generation finished",
              {{"id", exchange_->request().request_id},
               {"error", status.message},
               {"prompt_tokens", usage.prompt_tokens},
               {"cached_tokens", usage.cached_tokens},
               {"completion_tokens", usage.completion_tokens}});
    if (!status.ok()) return fail(status);
    const std::vector<std::string> rest = responder_->finish(usage);
    if (!stream_) return exchange_->reply({200, rest.front()});
    for (const std::string& chunk : rest) exchange_->send_event(chunk);
    exchange_->send_event("[DONE]");
    exchange_->end_stream();
  }

  void fail(const Status& status) {
    if (!exchange_->stream_open()) return exchange_->reply(error_reply(status, &numbers_));
    exchange_->send_event(api::error_body(status, &numbers_));
    exchange_->end_stream();
  }

 private:
  std::shared_ptr<Exchange> exchange_;
  std::unique_ptr<api::Responder> responder_;
  const bool stream_;
  const api::ContextNumbers numbers_;
};

api::ContextNumbers context_numbers(const api::Service& service,
                                    const api::GenerationRequest& request) {
  size_t longest = 0;
  for (const auto& prompt : request.prompts) longest = std::max(longest, prompt.size());
  return {static_cast<int64_t>(longest), service.engine()->model_info().max_model_len};
}

void log_ignored(const std::string& request_id, const std::vector<std::string>& fields) {
  for (const std::string& field : fields) {
    log::warn("http", "field without effect", {{"id", request_id}, {"field", field}});
  }
}

void run(const api::Service& service, const std::shared_ptr<Exchange>& exchange, Prepare prepare) {
  const HttpRequest& request = exchange->request();
  const auto arrival = Clock::now();
  if (Status status = service.can_accept(); !status.ok()) {
    return exchange->reply(error_reply(status));
  }
  const Result<api::Json> body = api::parse_body(request.body);
  if (!body.ok()) return exchange->reply(error_reply(body.status()));
  Result<api::PreparedGeneration> made = prepare(service, body.value());
  if (!made.ok()) return exchange->reply(error_reply(made.status()));

  api::PreparedGeneration& prepared = made.value();
  log_ignored(request.request_id, prepared.ignored);
  prepared.request.label = request.request_id;
  prepared.request.arrival = arrival;
  if (const int32_t limit = service.config().request_timeout; limit > 0) {
    prepared.request.deadline = arrival + std::chrono::seconds(limit);
  }
  const auto reply = std::make_shared<GenerationReply>(exchange,
                                                       std::move(prepared.responder),
                                                       prepared.stream,
                                                       context_numbers(service, prepared.request));
  const Result<std::shared_ptr<api::Generation>> generation =
      service.submit(std::move(prepared.request),
                     exchange->executor(),
                     {[reply](api::Delta delta) { reply->on_delta(std::move(delta)); },
                      [reply](const Status& status, const api::GenerationUsage& usage) {
                        reply->on_done(status, usage);
                      }});
  if (!generation.ok()) return reply->fail(generation.status());
  if (prepared.stream) exchange->expect_stream();
  // Weak: the engine keeps the generation, and the generation the exchange.
  exchange->on_disconnect([weak = std::weak_ptr(generation.value())] {
    if (const auto running = weak.lock()) running->cancel();
  });
}

}  // namespace

void chat_completions(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  run(context.service, exchange, &api::prepare_chat_completion);
}

void completions(const HandlerContext& context, const std::shared_ptr<Exchange>& exchange) {
  run(context.service, exchange, &api::prepare_completion);
}

}  // namespace headwater::http
