// Errors, three tiers (kernels/README.md):
//   broken invariant            -> HW_CHECK (check.h), aborts
//   start-up and device failure -> the exceptions below, caught in main or at the engine loop's
//   edge anything a client can cause -> Status / Result<T> values
// Thread-safe values; no ambient state.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace headwater {

// A configuration that cannot work: the message names the option to change.
struct ConfigError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// A model file that cannot be loaded: the message names file, field, what was expected and found.
struct LoadError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// The GPU or its driver failed: the call, its place and the driver's words.
struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class StatusCode {
  kOk,
  kInvalidArgument,    // HTTP 400, gRPC INVALID_ARGUMENT
  kContextLength,      // HTTP 400 context_length_exceeded, gRPC INVALID_ARGUMENT
  kNotFound,           // 404
  kResourceExhausted,  // 429 + Retry-After
  kUnavailable,        // 503 + Retry-After (starting or draining)
  kDeadlineExceeded,   // 504
  kCancelled,          // the client left
  kInternal,           // 500
};

struct [[nodiscard]] Status {
  StatusCode code = StatusCode::kOk;
  std::string message;
  std::string param;  // the request field at fault, "" if none

  bool ok() const { return code == StatusCode::kOk; }
  static Status Ok() { return {}; }
};

inline Status invalid_argument(std::string message, std::string param = "") {
  return {StatusCode::kInvalidArgument, std::move(message), std::move(param)};
}

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::move(value)) {}         // NOLINT: implicit by design
  Result(Status status) : state_(std::move(status)) {}  // NOLINT: implicit by design
  bool ok() const { return std::holds_alternative<T>(state_); }
  const Status& status() const { return std::get<Status>(state_); }
  T& value() & { return std::get<T>(state_); }
  const T& value() const& { return std::get<T>(state_); }
  T&& value() && { return std::get<T>(std::move(state_)); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace headwater
