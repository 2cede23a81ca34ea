// Service: what every front end stands on: the engine once it is loaded, the lifecycle, the model's
// name. Endpoints of api/ are functions over it. Thread-safe.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "server/api/prompt_builder.h"
#include "server/api/submit.h"
#include "server/config/config.h"
#include "server/lifecycle.h"

namespace headwater::api {

class Service final {
 public:
  Service(Lifecycle& lifecycle, const ServerConfig& config)
      : lifecycle_(lifecycle), config_(config) {}

  // Once, after loading, by the main thread; makes the lifecycle ready. The engine outlives every
  // front end and is not owned.
  void attach(Engine& engine);

  const Lifecycle& lifecycle() const { return lifecycle_; }
  const ServerConfig& config() const { return config_; }
  // Null while loading.
  Engine* engine() const { return engine_.load(std::memory_order_acquire); }
  // kUnavailable while loading, draining or failed.
  Status health() const;
  // The same, or kResourceExhausted when the queue is full. Ask before tokenizing; after an Ok,
  // engine() and prompts() are there.
  Status can_accept() const;
  // Only after attach().
  const PromptBuilder& prompts() const { return *prompts_; }
  // kNotFound with param "model" unless name is empty or the served model's.
  Status check_model(const std::string& name) const;

  // can_accept(), then Generation::start().
  Result<std::shared_ptr<Generation>> submit(GenerationRequest request,
                                             Executor executor,
                                             GenerationCallbacks callbacks) const;

 private:
  Lifecycle& lifecycle_;  // not owned
  const ServerConfig config_;
  std::unique_ptr<PromptBuilder> prompts_;
  std::atomic<Engine*> engine_{nullptr};
};

}  // namespace headwater::api
