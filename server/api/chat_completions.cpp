#include "server/api/chat_completions.h"

#include <iterator>
#include <utility>

namespace headwater::api {
namespace {

Json token_entry(const Tokenizer& tokenizer, const TokenLogprob& entry) {
  Json bytes = Json::array();
  for (const char c : tokenizer.token_bytes(entry.token, /*with_special=*/true)) {
    bytes.push_back(static_cast<unsigned char>(c));
  }
  return {{"token", token_string(tokenizer, entry.token)},
          {"logprob", finite_logprob(entry.logprob)},
          {"bytes", std::move(bytes)}};
}

// null, or {content: [...], refusal: null}.
Json logprobs_json(const Tokenizer& tokenizer,
                   bool wanted,
                   size_t num_top,
                   const std::vector<TokenLogprobs>& logprobs) {
  if (!wanted) return nullptr;
  Json content = Json::array();
  for (const TokenLogprobs& token : logprobs) {
    Json entry = token_entry(tokenizer, token.chosen);
    Json top = Json::array();
    for (size_t i = 0; i < token.top.size() && i < num_top; ++i) {
      top.push_back(token_entry(tokenizer, token.top[i]));
    }
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

class ChatResponder final : public Responder {
 public:
  ChatResponder(const Tokenizer& tokenizer, const std::string& model, const ChatRequest& request)
      : tokenizer_(tokenizer),
        stream_(request.stream),
        num_top_logprobs_(request.options.sampling.logprobs),
        head_(make_head("chatcmpl-",
                        request.stream.enabled ? "chat.completion.chunk" : "chat.completion",
                        model)),
        choices_(static_cast<size_t>(request.options.n)) {}

  std::vector<std::string> on_delta(Delta delta) override {
    Choice& choice = choices_[static_cast<size_t>(delta.choice)];
    if (!stream_.enabled) {
      choice.text += delta.text;
      std::move(delta.logprobs.begin(), delta.logprobs.end(), std::back_inserter(choice.logprobs));
      if (delta.finish != FinishReason::kNone) {
        choice.finish = delta.finish;
        choice.stop_reason = std::move(delta.stop_reason);
      }
      return {};
    }
    std::vector<std::string> chunks;
    // The role goes out with the first token: clients take their time to first token from it.
    if (!choice.started) {
      choice.started = true;
      chunks.push_back(
          chunk(delta, Json::object({{"role", "assistant"}, {"content", ""}}), nullptr));
    }
    if (!delta.text.empty() || !delta.logprobs.empty()) {
      chunks.push_back(
          chunk(delta,
                Json::object({{"content", delta.text}}),
                logprobs_json(tokenizer_, wants_logprobs(), num_top(), delta.logprobs)));
    }
    if (delta.finish != FinishReason::kNone) {
      chunks.push_back(chunk(delta, Json::object(), nullptr, delta.finish));
    }
    return chunks;
  }

  std::vector<std::string> finish(const GenerationUsage& usage) override {
    if (stream_.enabled) return usage_chunks(head_, stream_, usage);
    Json choices = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) {
      const Choice& choice = choices_[i];
      choices.push_back(
          {{"index", i},
           {"message", {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}}},
           {"logprobs", logprobs_json(tokenizer_, wants_logprobs(), num_top(), choice.logprobs)},
           {"finish_reason", finish_json(choice.finish)},
           {"stop_reason", stop_reason_json(choice.stop_reason)}});
    }
    const Json total = usage_json(usage);
    return {reply_text(head_, choices, &total)};
  }

 private:
  struct Choice {
    bool started = false;
    std::string text;
    std::vector<TokenLogprobs> logprobs;
    FinishReason finish = FinishReason::kNone;
    StopReason stop_reason;
  };

  bool wants_logprobs() const { return num_top_logprobs_ >= 0; }
  size_t num_top() const { return static_cast<size_t>(num_top_logprobs_); }

  std::string chunk(const Delta& delta,
                    Json content,
                    Json logprobs,
                    FinishReason finish = FinishReason::kNone) const {
    Json choice = {{"index", delta.choice},
                   {"delta", std::move(content)},
                   {"logprobs", std::move(logprobs)},
                   {"finish_reason", finish_json(finish)}};
    if (finish != FinishReason::kNone) choice["stop_reason"] = stop_reason_json(delta.stop_reason);
    return chunk_text(head_, std::move(choice), stream_, delta.so_far);
  }

  const Tokenizer& tokenizer_;  // not owned; the engine's
  const StreamOptions stream_;
  const int32_t num_top_logprobs_;  // -1: no logprobs
  const std::string head_;
  std::vector<Choice> choices_;
};

}  // namespace

Result<PreparedGeneration> prepare_chat_completion(const Service& service, const Json& body) {
  Result<ChatRequest> parsed = parse_chat_request(body, service.config());
  if (!parsed.ok()) return parsed.status();
  ChatRequest& request = parsed.value();
  if (Status status = service.check_model(request.model); !status.ok()) return status;
  Result<std::vector<int32_t>> prompt = service.prompts().chat(std::move(request.variables));
  if (!prompt.ok()) return prompt.status();

  const Engine& engine = *service.engine();
  PreparedGeneration prepared;
  prepared.stream = request.stream.enabled;
  prepared.ignored = std::move(request.ignored);
  prepared.responder =
      std::make_unique<ChatResponder>(engine.tokenizer(), engine.model_info().id, request);
  prepared.request.prompts.push_back(std::move(prompt).value());
  prepared.request.options = std::move(request.options);
  return prepared;
}

}  // namespace headwater::api
