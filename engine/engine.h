// Engine: the facade that the server sees. One engine thread behind it; every method here may be
// called from any thread and returns without waiting for the model.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/config/engine_config.h"
#include "engine/request.h"
#include "engine/stats.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace headwater {

struct ModelInfo {
  std::string id;  // served name
  std::string path;
  std::string architecture;       // "llama"
  std::string weight_format;      // "Q4_1 + Q8_0", as found in the file
  std::string device;             // "CPU, AVX-512 VNNI, 2 threads"
  std::string attention;          // policy
  std::string head_table;         // where the head table came from and how it was made; "" = none
  int32_t num_kv_heads = 0;       // of all layers
  int32_t num_full_heads = 0;     // those that keep every token
  int64_t kv_sequence_bytes = 0;  // held by a sequence of max_model_len tokens
  int64_t kv_sequence_bytes_dense = 0;
  int64_t weight_bytes = 0;
  int64_t num_parameters = 0;
  int32_t vocab_size = 0;
  int32_t max_model_len = 0;
  int64_t created = 0;  // unix seconds
};

class Engine {
 public:
  virtual ~Engine() = default;

  virtual const ModelInfo& model_info() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual const ChatTemplate* chat_template() const = 0;  // null: completion-only model
  virtual const std::vector<int32_t>& eos_token_ids() const = 0;

  virtual RequestId next_request_id() = 0;
  // kResourceExhausted if a further request would not be taken (the queue is full), kUnavailable
  // while draining. For deciding before tokenizing; submit() decides again.
  virtual Status can_accept() const = 0;
  // Checks bounds and length, then queues. On an error the sink is never called.
  virtual Status submit(Request request) = 0;
  // The request's choices end with kAbort unless they ended before. Unknown ids are ignored.
  virtual void cancel(RequestId id) = 0;
  // The client has all it wants of this choice (a stop string matched): it ends with kStop.
  virtual void stop_choice(RequestId id, int32_t choice) = 0;

  virtual EngineStats stats() const = 0;
  virtual bool healthy() const = 0;  // false after a device failure: every request was answered

  // Stops taking requests, waits until the running ones end or the time is up, aborts the rest.
  // Returns true if none had to be aborted. Idempotent.
  virtual bool drain(std::chrono::milliseconds timeout) = 0;
};

// progress(stage, done, total) is called while loading, from the calling thread.
using LoadProgress = std::function<void(const std::string& stage, int64_t done, int64_t total)>;

// Loads the model and starts the engine thread. Throws ConfigError, LoadError or CudaError.
std::unique_ptr<Engine> make_engine(const EngineConfig& config, const LoadProgress& progress);

// The same on a device of the caller's; the pool outlives it.
class Ops;
class ThreadPool;
using DeviceMaker = std::function<std::unique_ptr<Ops>(const EngineConfig&, ThreadPool&)>;
std::unique_ptr<Engine> make_engine(const EngineConfig& config,
                                    const LoadProgress& progress,
                                    const DeviceMaker& make_device);

}  // namespace headwater
