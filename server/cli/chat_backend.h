// ChatBackend: who answers in `headwater chat`: a server over HTTP, or an engine in this process.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "engine/engine.h"

namespace headwater::cli {

struct ChatSampling {
  double temperature = 0.7;
  double top_p = 0.95;
  int64_t max_tokens = 1024;  // 0 = what the context leaves
  uint64_t seed = 0;          // 0 = random
};

struct Answer {
  std::string text;
  int64_t tokens = 0;
  double first_s = 0;  // asked -> first text
  double total_s = 0;
  bool cancelled = false;
};

class ChatBackend {
 public:
  virtual ~ChatBackend() = default;
  // messages: [{role, content}]. on_text is called on this thread with each piece. SIGINT cancels
  // the answer while this runs, and is left alone otherwise. Throws std::runtime_error with what
  // the server or engine said.
  virtual Answer answer(const nlohmann::ordered_json& messages,
                        const ChatSampling& sampling,
                        const std::function<void(const std::string&)>& on_text) = 0;
  virtual std::string description() const = 0;  // for the greeting
};

// model "" = the first one the server lists.
std::unique_ptr<ChatBackend> make_http_backend(const std::string& url,
                                               const std::string& api_key,
                                               const std::string& model);
std::unique_ptr<ChatBackend> make_engine_backend(std::unique_ptr<Engine> engine);

}  // namespace headwater::cli
