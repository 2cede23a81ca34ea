#include "server/api/completions.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/text/detokenizer.h"

namespace headwater::api {
namespace {

int64_t num_characters(const std::string& utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  });
}

std::string decode(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  Detokenizer detokenizer(tokenizer, /*skip_special=*/false, /*at_start=*/true);
  std::string text;
  for (const int32_t id : ids) text += detokenizer.push(id);
  return text + detokenizer.flush();
}

// The four parallel lists of the completions endpoint.
class LogprobLists {
 public:
  // offset: where the next token begins in the choice's text, in characters.
  LogprobLists(const Tokenizer& tokenizer, size_t num_top, int64_t offset)
      : tokenizer_(tokenizer), num_top_(num_top), offset_(offset) {}

  // A token that nothing came before has no probability.
  void add_first(int32_t token) {
    add_token(token);
    token_logprobs_.push_back(nullptr);
    top_logprobs_.push_back(nullptr);
  }

  void add(const TokenLogprobs& token) {
    const std::string text = add_token(token.chosen.token);
    token_logprobs_.push_back(finite_logprob(token.chosen.logprob));
    // Tokens that look alike share a key: the likelier one keeps it. The chosen one is always
    // there.
    Json top = Json::object();
    for (size_t i = 0; i < token.top.size() && i < num_top_; ++i) {
      top.emplace(token_string(tokenizer_, token.top[i].token),
                  finite_logprob(token.top[i].logprob));
    }
    top.emplace(text, finite_logprob(token.chosen.logprob));
    top_logprobs_.push_back(std::move(top));
  }

  int64_t offset() const { return offset_; }

  Json take() {
    return {{"text_offset", std::move(text_offset_)},
            {"token_logprobs", std::move(token_logprobs_)},
            {"tokens", std::move(tokens_)},
            {"top_logprobs", std::move(top_logprobs_)}};
  }

 private:
  std::string add_token(int32_t token) {
    std::string text = token_string(tokenizer_, token);
    tokens_.push_back(text);
    text_offset_.push_back(offset_);
    offset_ += num_characters(text);
    return text;
  }

  const Tokenizer& tokenizer_;
  const size_t num_top_;
  int64_t offset_;
  Json text_offset_ = Json::array(), token_logprobs_ = Json::array(), tokens_ = Json::array(),
       top_logprobs_ = Json::array();
};

class CompletionResponder final : public Responder {
 public:
  // prompts is read only if the request asks for echo.
  CompletionResponder(const Tokenizer& tokenizer,
                      const std::string& model,
                      const CompletionRequest& request,
                      const std::vector<std::vector<int32_t>>& prompts)
      : tokenizer_(tokenizer),
        stream_(request.stream),
        num_choices_per_prompt_(static_cast<size_t>(request.options.n)),
        num_top_logprobs_(request.options.sampling.logprobs),
        head_(make_head("cmpl-", "text_completion", model)),
        choices_(prompts.size() * num_choices_per_prompt_) {
    if (!request.echo) return;
    for (const auto& ids : prompts) prompts_.push_back({ids, decode(tokenizer, ids), {}});
  }

  std::vector<std::string> on_delta(Delta delta) override {
    const auto choice_idx = static_cast<size_t>(delta.choice);
    if (echo() && !delta.prompt_logprobs.empty()) {
      prompt_of(choice_idx).logprobs = std::move(delta.prompt_logprobs);
    }
    Choice& choice = choices_[choice_idx];
    choice.text += delta.text;
    std::move(delta.logprobs.begin(), delta.logprobs.end(), std::back_inserter(choice.logprobs));
    if (delta.finish != FinishReason::kNone) {
      choice.finish = delta.finish;
      choice.stop_reason = std::move(delta.stop_reason);
    }
    const bool first = !choice.started;
    choice.started = true;
    const bool shows = first || !choice.text.empty() || !choice.logprobs.empty() ||
                       choice.finish != FinishReason::kNone;
    if (!stream_.enabled || !shows) return {};
    std::vector<std::string> chunks = {
        chunk_text(head_, take_choice(choice_idx, first), stream_, delta.so_far)};
    return chunks;
  }

  std::vector<std::string> finish(const GenerationUsage& usage) override {
    if (stream_.enabled) return usage_chunks(head_, stream_, usage);
    Json choices = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) choices.push_back(take_choice(i, true));
    const Json total = usage_json(usage);
    return {reply_text(head_, choices, &total)};
  }

 private:
  struct Prompt {
    std::vector<int32_t> ids;
    std::string text;
    std::vector<TokenLogprobs> logprobs;  // of every token but the first
  };
  // What was not sent yet.
  struct Choice {
    bool started = false;
    std::string text;
    std::vector<TokenLogprobs> logprobs;
    int64_t offset = 0;  // characters that the logprobs sent so far cover
    FinishReason finish = FinishReason::kNone;
    StopReason stop_reason;
  };

  bool echo() const { return !prompts_.empty(); }
  Prompt& prompt_of(size_t choice_idx) { return prompts_[choice_idx / num_choices_per_prompt_]; }

  // The choice's JSON with all that was collected, which is gone afterwards. first: nothing of the
  // choice was taken before, so the echo comes with it.
  Json take_choice(size_t choice_idx, bool first) {
    Choice& choice = choices_[choice_idx];
    const bool with_prompt = first && echo();
    std::string text = with_prompt ? prompt_of(choice_idx).text + choice.text : choice.text;
    Json logprobs = nullptr;
    if (num_top_logprobs_ >= 0) {
      LogprobLists lists(tokenizer_, static_cast<size_t>(num_top_logprobs_), choice.offset);
      if (with_prompt) {
        const Prompt& prompt = prompt_of(choice_idx);
        lists.add_first(prompt.ids.front());
        for (const TokenLogprobs& token : prompt.logprobs) lists.add(token);
      }
      for (const TokenLogprobs& token : choice.logprobs) lists.add(token);
      choice.offset = lists.offset();
      logprobs = lists.take();
    }
    choice.text.clear();
    choice.logprobs.clear();
    return {{"index", choice_idx},
            {"text", std::move(text)},
            {"logprobs", std::move(logprobs)},
            {"finish_reason", finish_json(choice.finish)},
            {"stop_reason", stop_reason_json(choice.stop_reason)}};
  }

  const Tokenizer& tokenizer_;  // not owned; the engine's
  const StreamOptions stream_;
  const size_t num_choices_per_prompt_;
  const int32_t num_top_logprobs_;  // -1: no logprobs
  const std::string head_;
  std::vector<Prompt> prompts_;  // empty: no echo
  std::vector<Choice> choices_;
};

Result<std::vector<int32_t>> prompt_ids(const Service& service, PromptInput& input) {
  if (const auto* text = std::get_if<std::string>(&input)) return service.prompts().plain(*text);
  std::vector<int32_t> ids = std::move(std::get<std::vector<int32_t>>(input));
  const int32_t vocab_size = service.engine()->tokenizer().vocab_size();
  for (const int32_t id : ids) {
    if (id >= vocab_size) {
      return invalid_argument("prompt has the token id " + std::to_string(id) +
                                  "; the model knows 0 to " + std::to_string(vocab_size - 1),
                              "prompt");
    }
  }
  return ids;
}

}  // namespace

Result<PreparedGeneration> prepare_completion(const Service& service, const Json& body) {
  Result<CompletionRequest> parsed = parse_completion_request(body, service.config());
  if (!parsed.ok()) return parsed.status();
  CompletionRequest& request = parsed.value();
  if (Status status = service.check_model(request.model); !status.ok()) return status;

  PreparedGeneration prepared;
  for (PromptInput& input : request.prompts) {
    Result<std::vector<int32_t>> ids = prompt_ids(service, input);
    if (!ids.ok()) return ids.status();
    prepared.request.prompts.push_back(std::move(ids).value());
  }
  const Engine& engine = *service.engine();
  prepared.stream = request.stream.enabled;
  prepared.ignored = std::move(request.ignored);
  prepared.responder = std::make_unique<CompletionResponder>(
      engine.tokenizer(), engine.model_info().id, request, prepared.request.prompts);
  prepared.request.options = std::move(request.options);
  return prepared;
}

}  // namespace headwater::api
