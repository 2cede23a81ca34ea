// Listener: the HTTP server: accepts connections and runs the I/O threads. Own thread-safety: the
// constructor and stop() belong to the main thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "server/http/routes.h"

namespace headwater::http {

class Listener final {
 public:
  // Binds and starts to serve with the service's configuration. Throws ConfigError naming host and
  // port. context's parts are not owned and outlive the listener.
  explicit Listener(const HandlerContext& context);
  ~Listener();

  uint16_t port() const;  // the real one when the configuration says 0

  // Waits until replies under way are written or the time is up, then closes every connection and
  // ends the threads. Drain the engine before, so that no sink still posts. Idempotent.
  void stop(std::chrono::milliseconds grace);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace headwater::http
