#include "server/api/service.h"

#include <utility>

namespace headwater::api {

void Service::attach(Engine& engine) {
  prompts_ = std::make_unique<PromptBuilder>(engine.tokenizer(), engine.chat_template());
  engine_.store(&engine, std::memory_order_release);
  lifecycle_.set_ready();
}

// The engine knows of its failure before the main thread does.
Status Service::health() const {
  if (Status status = lifecycle_.accepting(); !status.ok()) return status;
  return engine()->healthy() ? Status::Ok() : Lifecycle::failed_status();
}

Status Service::can_accept() const {
  if (Status status = health(); !status.ok()) return status;
  return engine()->can_accept();
}

Status Service::check_model(const std::string& name) const {
  const std::string& served = engine()->model_info().id;
  if (name.empty() || name == served) return Status::Ok();
  return {StatusCode::kNotFound,
          "the model '" + name + "' does not exist; this server serves '" + served + "'",
          "model"};
}

Result<std::shared_ptr<Generation>> Service::submit(GenerationRequest request,
                                                    Executor executor,
                                                    GenerationCallbacks callbacks) const {
  if (Status status = can_accept(); !status.ok()) return status;
  return Generation::start(
      *engine(), std::move(request), std::move(executor), std::move(callbacks));
}

}  // namespace headwater::api
