// PromptBuilder: text and chat messages -> token ids. Holds the one rule of trust: only the chat
// template may write control tokens; what a client sends never becomes one.
// Thread-safe after construction.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"

namespace headwater::api {

class PromptBuilder {
 public:
  // Neither is owned; chat_template may be null (completion-only model).
  PromptBuilder(const Tokenizer& tokenizer, const ChatTemplate* chat_template);

  // Plain text, with bos as the vocabulary says.
  std::vector<int32_t> plain(std::string_view text) const;

  // variables: what the template reads: an array `messages`, and optionally tools,
  // add_generation_prompt (default true), and further template arguments. bos_token and eos_token
  // are added here. A part list as content is joined to one string.
  // For messages without the text of a control token the ids are those of the rendered text.
  Result<std::vector<int32_t>> chat(nlohmann::ordered_json variables) const;

 private:
  struct ControlToken {
    std::string text;
    int32_t id;
  };
  struct ControlMatch {
    size_t length = 0;  // of the longest control token that begins here; 0: none
    int32_t id = -1;
    bool cut_off = false;  // the text ends within a control token that begins here
  };
  ControlMatch match_control(std::string_view text) const;
  std::string guarded(const std::string& text, std::string_view guard) const;
  Status guard_strings(nlohmann::ordered_json& value, std::string_view guard) const;
  std::vector<int32_t> encode_guarded(std::string_view text, std::string_view guard) const;

  const Tokenizer& tokenizer_;
  const ChatTemplate* chat_template_;
  std::vector<ControlToken> controls_;  // sorted by text
};

}  // namespace headwater::api
