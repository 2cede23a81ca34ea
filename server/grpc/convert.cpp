#include "server/grpc/convert.h"

#include <utility>

#include "server/api/openai_schema.h"

namespace headwater::grpc_api {
namespace {

void to_logprob(const TokenLogprob& from, const Tokenizer& tokenizer, v1::TokenLogprob* to) {
  to->set_token_id(static_cast<uint32_t>(from.token));
  to->set_token(tokenizer.token_bytes(from.token, true));
  to->set_logprob(from.logprob);
}

void to_logprobs(const TokenLogprobs& from, const Tokenizer& tokenizer, v1::TokenLogprobs* to) {
  to_logprob(from.chosen, tokenizer, to->mutable_chosen());
  for (const TokenLogprob& top : from.top) to_logprob(top, tokenizer, to->add_top());
}

template <typename Field>
void set(api::Json& body, const char* name, bool is_set, const Field& value) {
  if (is_set) body[name] = value;
}

// What both bodies share, under the names of OpenAI and vLLM.
api::Json to_body(const v1::SamplingParams& p) {
  api::Json body = api::Json::object();
  set(body, "temperature", p.has_temperature(), p.temperature());
  set(body, "top_k", p.has_top_k(), p.top_k());
  set(body, "top_p", p.has_top_p(), p.top_p());
  set(body, "min_p", p.has_min_p(), p.min_p());
  set(body, "typical_p", p.has_typical_p(), p.typical_p());
  set(body, "repetition_penalty", p.has_repetition_penalty(), p.repetition_penalty());
  set(body, "presence_penalty", p.has_presence_penalty(), p.presence_penalty());
  set(body, "frequency_penalty", p.has_frequency_penalty(), p.frequency_penalty());
  // Both transports take any 64 bits; JSON's reader sees them as signed.
  set(body, "seed", p.has_seed(), static_cast<int64_t>(p.seed()));
  set(body, "max_tokens", p.has_max_tokens(), p.max_tokens());
  set(body, "min_tokens", p.has_min_tokens(), p.min_tokens());
  set(body, "ignore_eos", p.has_ignore_eos(), p.ignore_eos());
  set(body, "n", p.has_n(), p.n());
  set(body,
      "include_stop_str_in_output",
      p.has_include_stop_str_in_output(),
      p.include_stop_str_in_output());
  set(body, "skip_special_tokens", p.has_skip_special_tokens(), p.skip_special_tokens());
  if (p.has_attention()) {
    api::Json& attention = body["attention"] = api::Json::object();
    const v1::Attention& a = p.attention();
    set(attention, "policy", !a.policy().empty(), a.policy());
    set(attention, "kv_budget", a.has_kv_budget(), a.kv_budget());
    set(attention, "selection_budget", a.has_selection_budget(), a.selection_budget());
  }
  for (const auto& [token, bias] : p.logit_bias()) body["logit_bias"][std::to_string(token)] = bias;
  for (const std::string& stop : p.stop()) body["stop"].push_back(stop);
  for (const int32_t id : p.stop_token_ids()) body["stop_token_ids"].push_back(id);
  return body;
}

// OpenAI has no such field.
Status read_prompt_logprobs(const v1::SamplingParams& p,
                            const ServerConfig& config,
                            api::GenerationOptions& options) {
  if (!p.has_prompt_logprobs()) return Status::Ok();
  if (p.prompt_logprobs() < 0 || p.prompt_logprobs() > config.max_logprobs) {
    return invalid_argument("prompt_logprobs must be between 0 and " +
                                std::to_string(config.max_logprobs) + ", got " +
                                std::to_string(p.prompt_logprobs()),
                            "prompt_logprobs");
  }
  options.sampling.prompt_logprobs = p.prompt_logprobs();
  return Status::Ok();
}

// As many as a JSON body may have.
Status check_logit_bias(const v1::SamplingParams& p) {
  if (p.logit_bias_size() <= api::kMaxJsonMembers) return Status::Ok();
  return invalid_argument("logit_bias takes at most " + std::to_string(api::kMaxJsonMembers) +
                              " tokens, got " + std::to_string(p.logit_bias_size()),
                          "logit_bias");
}

template <typename Parsed>
Result<api::GenerationOptions> options_of(Result<Parsed> parsed,
                                          const v1::SamplingParams& p,
                                          const ServerConfig& config) {
  if (!parsed.ok()) return parsed.status();
  api::GenerationOptions options = std::move(parsed.value().options);
  if (Status status = read_prompt_logprobs(p, config, options); !status.ok()) return status;
  return options;
}

}  // namespace

grpc::Status to_grpc(const Status& status) {
  switch (status.code) {
    case StatusCode::kOk:
      return grpc::Status::OK;
    case StatusCode::kInvalidArgument:
    case StatusCode::kContextLength:
      return {grpc::StatusCode::INVALID_ARGUMENT, status.message};
    case StatusCode::kNotFound:
      return {grpc::StatusCode::NOT_FOUND, status.message};
    case StatusCode::kResourceExhausted:
      return {grpc::StatusCode::RESOURCE_EXHAUSTED, status.message};
    case StatusCode::kUnavailable:
      return {grpc::StatusCode::UNAVAILABLE, status.message};
    case StatusCode::kDeadlineExceeded:
      return {grpc::StatusCode::DEADLINE_EXCEEDED, status.message};
    case StatusCode::kCancelled:
      return {grpc::StatusCode::CANCELLED, status.message};
    case StatusCode::kInternal:
      break;
  }
  return {grpc::StatusCode::INTERNAL, status.message};
}

Result<api::GenerationOptions> completion_options(const v1::SamplingParams& p,
                                                  const ServerConfig& config) {
  if (Status status = check_logit_bias(p); !status.ok()) return status;
  api::Json body = to_body(p);
  body["prompt"] = "";  // the prompt takes its own way
  set(body, "logprobs", p.has_logprobs(), p.logprobs());
  return options_of(api::parse_completion_request(body, config), p, config);
}

Result<api::GenerationOptions> chat_options(const v1::SamplingParams& p,
                                            const ServerConfig& config) {
  if (Status status = check_logit_bias(p); !status.ok()) return status;
  api::Json body = to_body(p);
  body["messages"] = api::Json::array({api::Json::object()});  // likewise
  set(body, "logprobs", p.has_logprobs(), true);
  set(body, "top_logprobs", p.has_logprobs(), p.logprobs());
  return options_of(api::parse_chat_request(body, config), p, config);
}

Result<std::vector<int32_t>> to_tokens(const v1::TokenIds& tokens, int32_t vocab_size) {
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(tokens.ids_size()));
  for (const uint32_t id : tokens.ids()) {
    if (id >= static_cast<uint32_t>(vocab_size)) {
      return invalid_argument("tokens: ids must be below " + std::to_string(vocab_size) +
                                  " (the vocabulary), got " + std::to_string(id),
                              "tokens");
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

void to_piece(const api::Delta& delta, const Tokenizer& tokenizer, v1::Piece* piece) {
  piece->set_index(delta.choice);
  piece->set_text(delta.text);
  for (const int32_t token : delta.tokens) piece->add_token_ids(static_cast<uint32_t>(token));
  for (const auto& entry : delta.logprobs) to_logprobs(entry, tokenizer, piece->add_logprobs());
  for (const auto& entry : delta.prompt_logprobs) {
    to_logprobs(entry, tokenizer, piece->add_prompt_logprobs());
  }
  if (delta.finish == FinishReason::kStop) {
    piece->set_finish_reason(v1::FINISH_REASON_STOP);
  } else if (delta.finish == FinishReason::kLength) {
    piece->set_finish_reason(v1::FINISH_REASON_LENGTH);
  }
  if (const auto* id = std::get_if<int32_t>(&delta.stop_reason)) {
    piece->set_stop_token_id(*id);
  } else if (const auto* text = std::get_if<std::string>(&delta.stop_reason)) {
    piece->set_stop_text(*text);
  }
}

void to_usage(const api::GenerationUsage& usage, v1::Usage* out) {
  out->set_prompt_tokens(usage.prompt_tokens);
  out->set_cached_tokens(usage.cached_tokens);
  out->set_completion_tokens(usage.completion_tokens);
  out->set_kv_bytes(usage.kv_bytes);
  out->set_kv_bytes_dense(usage.kv_bytes_dense);
}

}  // namespace headwater::grpc_api
