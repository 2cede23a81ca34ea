// Request bodies through every parser of server/api: no input may crash them, and what they accept
// keeps its promises.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "server/api/error_map.h"
#include "server/api/openai_schema.h"

using namespace headwater;

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

template <typename T>
void check_refusal(const Result<T>& result) {
  if (result.ok()) return;
  require(result.status().code == StatusCode::kInvalidArgument);
  require(!result.status().message.empty());
  require(!api::error_body(result.status()).empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<api::Json> body = api::parse_body(text);
  check_refusal(body);
  if (!body.ok()) return 0;
  api::to_text(body.value());

  const ServerConfig config;
  const auto chat = api::parse_chat_request(body.value(), config);
  check_refusal(chat);
  if (chat.ok()) {
    require(chat.value().options.n >= 1 && chat.value().options.n <= config.max_choices);
    require(!chat.value().variables["messages"].empty());
  }
  const auto completion = api::parse_completion_request(body.value(), config);
  check_refusal(completion);
  if (completion.ok()) require(!completion.value().prompts.empty());
  check_refusal(api::parse_tokenize_request(body.value()));
  check_refusal(api::parse_detokenize_request(body.value()));
  return 0;
}
