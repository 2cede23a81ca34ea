#include "server/lifecycle.h"

#include <ctime>

namespace headwater {

const char* state_name(ServerState state) {
  switch (state) {
    case ServerState::kStarting:
      return "starting";
    case ServerState::kReady:
      return "ready";
    case ServerState::kDraining:
      return "draining";
    case ServerState::kFailed:
      return "failed";
  }
  return "unknown";
}

void Lifecycle::set_ready() {
  ServerState expected = ServerState::kStarting;
  state_.compare_exchange_strong(expected, ServerState::kReady);
}

void Lifecycle::set_draining() {
  ServerState current = state_.load();
  while (current != ServerState::kFailed &&
         !state_.compare_exchange_weak(current, ServerState::kDraining)) {
  }
}

Status Lifecycle::accepting() const {
  switch (state()) {
    case ServerState::kReady:
      return Status::Ok();
    case ServerState::kStarting:
      return {StatusCode::kUnavailable, "the model is still loading; try again shortly", ""};
    case ServerState::kDraining:
      return {StatusCode::kUnavailable, "the server is shutting down; try another replica", ""};
    case ServerState::kFailed:
      break;
  }
  return failed_status();
}

Status Lifecycle::failed_status() {
  return {StatusCode::kUnavailable, "the engine failed; the server is about to exit", ""};
}

ShutdownSignals::ShutdownSignals() {
  std::signal(SIGPIPE, SIG_IGN);
  sigemptyset(&set_);
  sigaddset(&set_, SIGTERM);
  sigaddset(&set_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set_, nullptr);
}

int ShutdownSignals::wait(const std::function<bool()>& alive) {
  constexpr timespec kPoll{0, 100'000'000};
  while (alive()) {
    const int signal = sigtimedwait(&set_, nullptr, &kPoll);
    if (signal > 0) return signal;
  }
  return 0;
}

void ShutdownSignals::release() { pthread_sigmask(SIG_UNBLOCK, &set_, nullptr); }

}  // namespace headwater
