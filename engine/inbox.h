// Inbox: how other threads speak to the engine thread. Commands are taken in order, all at once.
// Bounded by Engine::submit, which counts what waits.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "engine/request.h"

namespace headwater {

struct CancelCommand {
  RequestId id = 0;
};
struct StopChoiceCommand {
  RequestId id = 0;
  int32_t choice = 0;
};
struct AbortAllCommand {
  Status why;
};
struct StopCommand {};
using Command =
    std::variant<Request, CancelCommand, StopChoiceCommand, AbortAllCommand, StopCommand>;

class Inbox {
 public:
  void push(Command command) {
    {
      const std::lock_guard lock(mutex_);
      commands_.push_back(std::move(command));
    }
    filled_.notify_one();
  }

  std::vector<Command> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(commands_, {});
  }

  // Waits until there is a command, or until the time.
  std::vector<Command> wait(std::optional<Clock::time_point> until) {
    std::unique_lock lock(mutex_);
    const auto filled = [&] { return !commands_.empty(); };
    if (until) {
      filled_.wait_until(lock, *until, filled);
    } else {
      filled_.wait(lock, filled);
    }
    return std::exchange(commands_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable filled_;
  std::vector<Command> commands_;
};

}  // namespace headwater
