#include "server/api/responder.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <utility>

#include "engine/text/detokenizer.h"

namespace headwater::api {

std::string make_head(const std::string& id_prefix,
                      const std::string& object,
                      const std::string& model) {
  std::random_device random;
  char hex[33];
  std::snprintf(hex, sizeof hex, "%08x%08x%08x%08x", random(), random(), random(), random());
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::string head =
      to_text({{"id", id_prefix + hex},
               {"object", object},
               {"created", std::chrono::duration_cast<std::chrono::seconds>(now).count()},
               {"model", model}});
  head.pop_back();  // the brace: more members follow
  return head;
}

std::string reply_text(const std::string& head, const Json& choices, const Json* usage) {
  std::string text = head + ",\"choices\":" + to_text(choices);
  if (usage != nullptr) text += ",\"usage\":" + to_text(*usage);
  return text + ",\"system_fingerprint\":null}";
}

std::string chunk_text(const std::string& head,
                       Json choice,
                       const StreamOptions& stream,
                       const GenerationUsage& so_far) {
  const Json usage = stream.continuous_usage ? usage_json(so_far) : Json(nullptr);
  const bool with_usage = stream.include_usage || stream.continuous_usage;
  Json choices = Json::array();
  choices.push_back(std::move(choice));
  return reply_text(head, choices, with_usage ? &usage : nullptr);
}

std::vector<std::string> usage_chunks(const std::string& head,
                                      const StreamOptions& stream,
                                      const GenerationUsage& usage) {
  if (!stream.include_usage) return {};
  const Json total = usage_json(usage);
  return {reply_text(head, Json::array(), &total)};
}

Json usage_json(const GenerationUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", 0}}},
          {"kv_bytes", usage.kv_bytes},
          {"kv_bytes_dense", usage.kv_bytes_dense}};
}

Json finish_json(FinishReason finish) {
  switch (finish) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    default:
      return nullptr;
  }
}

Json stop_reason_json(const StopReason& reason) {
  if (const auto* id = std::get_if<int32_t>(&reason)) return *id;
  if (const auto* text = std::get_if<std::string>(&reason)) return *text;
  return nullptr;
}

std::string token_string(const Tokenizer& tokenizer, int32_t id) {
  if (tokenizer.is_control(id)) return std::string(tokenizer.token_text(id));
  Detokenizer detokenizer(tokenizer, /*skip_special=*/false);
  std::string text = detokenizer.push(id);
  return text + detokenizer.flush();
}

double finite_logprob(float logprob) {
  constexpr float kUnlikely = -9999.0f;
  return logprob > kUnlikely ? logprob : kUnlikely;  // NaN compares false
}

}  // namespace headwater::api
