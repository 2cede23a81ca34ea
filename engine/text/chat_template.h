// ChatTemplate: the Jinja subset that published chat templates use. Parsed once, rendered often;
// render() is const and thread-safe. Bounded in steps, depth and output.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "kernels/base/status.h"

namespace headwater {

class ChatTemplate {
 public:
  // Throws LoadError with line and what was expected.
  ChatTemplate(std::string source, const std::string& name);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;

  // variables: an object with messages, add_generation_prompt, tools, bos_token, eos_token, ...
  // Key order is kept. kInvalidArgument: the template raised (raise_exception) or went over a
  // bound; the message says which.
  // now: seconds since 1970 for strftime_now; without it, the clock.
  Result<std::string> render(const nlohmann::ordered_json& variables,
                             std::optional<int64_t> now = std::nullopt) const;
  const std::string& source() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headwater
