// Lifecycle: where the server stands, and the signals that end it.
// Lifecycle is thread-safe; ShutdownSignals belongs to the main thread.
#pragma once

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <string>

#include "kernels/base/status.h"

namespace headwater {

enum class ServerState : uint8_t { kStarting, kReady, kDraining, kFailed };

const char* state_name(ServerState state);

// starting -> ready -> draining; failed from anywhere and final. Other moves are ignored.
class Lifecycle final {
 public:
  ServerState state() const { return state_.load(); }
  void set_ready();
  void set_draining();
  void set_failed() { state_.store(ServerState::kFailed); }
  static Status failed_status();
  // Ok only when ready; otherwise kUnavailable with what the client should do.
  Status accepting() const;

 private:
  std::atomic<ServerState> state_{ServerState::kStarting};
};

// SIGTERM and SIGINT as values. The constructor blocks both for the calling thread and every thread
// started after it, so it must come before any thread. SIGPIPE is ignored from then on.
class ShutdownSignals final {
 public:
  ShutdownSignals();
  // Waits for a signal and returns it, or returns 0 as soon as alive() is false (asked about ten
  // times a second).
  int wait(const std::function<bool()>& alive);
  // Gives both signals their default effect again: a second one ends the process at once.
  void release();

 private:
  sigset_t set_;
};

}  // namespace headwater
