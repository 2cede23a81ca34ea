// GrpcServer: the gRPC listener of the process: headwater.v1.Inference, grpc.health.v1 and, if the
// configuration wants it, reflection. Owned and called by the main thread.
#pragma once

#include <chrono>
#include <memory>

#include "server/api/service.h"

namespace headwater {

class GrpcServer final {
 public:
  // Listens on config's host and grpc_port at once (0: any free port); until set_serving(true)
  // health says NOT_SERVING. Throws ConfigError if the address cannot be had.
  // service is not owned. Engine::drain() comes before the destructor.
  explicit GrpcServer(const api::Service& service);
  ~GrpcServer();

  int port() const;
  void set_serving(bool serving);
  // Takes no more calls, waits for the running ones, cancels them when the time is up. Idempotent.
  void shutdown(std::chrono::milliseconds grace);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headwater
