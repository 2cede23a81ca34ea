// openai_schema: request bodies -> native parameters. Unknown fields are ignored; a known one of
// the wrong type or beyond its bound is refused with the bound in the message and its name in
// Status::param. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "server/api/json_body.h"
#include "server/api/submit.h"
#include "server/config/config.h"

namespace headwater::api {

struct StreamOptions {
  bool enabled = false;
  bool include_usage = false;
  bool continuous_usage = false;
};

struct ChatRequest {
  std::string model;
  Json variables;  // for PromptBuilder::chat
  GenerationOptions options;
  StreamOptions stream;
  std::vector<std::string> ignored;  // fields that are set, known to OpenAI and without effect here
};

using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest {
  std::string model;
  std::vector<PromptInput> prompts;
  GenerationOptions options;
  StreamOptions stream;
  bool echo = false;
  std::vector<std::string> ignored;
};

struct TokenizeRequest {
  std::string model;
  std::variant<std::string, Json> input;  // text, or variables for PromptBuilder::chat
  bool add_special = true;
  bool with_pieces = false;         // llama-server: pieces beside ids
  bool llama_server_shape = false;  // asked by `content`
};

// config bounds n and logprobs and gives the chat's default max_tokens.
Result<ChatRequest> parse_chat_request(const Json& body, const ServerConfig& config);
Result<CompletionRequest> parse_completion_request(const Json& body, const ServerConfig& config);
Result<TokenizeRequest> parse_tokenize_request(const Json& body);
Result<std::vector<int32_t>> parse_detokenize_request(const Json& body);

}  // namespace headwater::api
