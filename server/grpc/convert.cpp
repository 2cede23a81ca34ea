#include "server/grpc/convert.h"

#include <utility>

namespace headwater::grpc_api {
namespace {

constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;

Status out_of_range(const char* field, int64_t value, int64_t low, int64_t high) {
  return invalid_argument(std::string(field) + " must be between " + std::to_string(low) + " and " +
                              std::to_string(high) + ", got " + std::to_string(value),
                          field);
}

void to_logprob(const TokenLogprob& from, const Tokenizer& tokenizer, v1::TokenLogprob* to) {
  to->set_token_id(static_cast<uint32_t>(from.token));
  to->set_token(tokenizer.token_bytes(from.token, true));
  to->set_logprob(from.logprob);
}

void to_logprobs(const TokenLogprobs& from, const Tokenizer& tokenizer, v1::TokenLogprobs* to) {
  to_logprob(from.chosen, tokenizer, to->mutable_chosen());
  for (const TokenLogprob& top : from.top) to_logprob(top, tokenizer, to->add_top());
}

Status check_bounds(const v1::SamplingParams& p, const ServerConfig& config) {
  if (p.has_n() && (p.n() < 1 || p.n() > config.max_choices)) {
    return out_of_range("n", p.n(), 1, config.max_choices);
  }
  if (p.has_logprobs() && (p.logprobs() < 0 || p.logprobs() > config.max_logprobs)) {
    return out_of_range("logprobs", p.logprobs(), 0, config.max_logprobs);
  }
  if (p.has_prompt_logprobs() &&
      (p.prompt_logprobs() < 0 || p.prompt_logprobs() > config.max_logprobs)) {
    return out_of_range("prompt_logprobs", p.prompt_logprobs(), 0, config.max_logprobs);
  }
  if (p.has_max_tokens() && p.max_tokens() < 0) {
    return invalid_argument("max_tokens must be at least 0, got " + std::to_string(p.max_tokens()),
                            "max_tokens");
  }
  if (p.stop_size() > kMaxStops) return out_of_range("stop", p.stop_size(), 0, kMaxStops);
  for (const std::string& stop : p.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return invalid_argument("stop: each string must have 1 to " + std::to_string(kMaxStopBytes) +
                                  " bytes, got one of " + std::to_string(stop.size()),
                              "stop");
    }
  }
  return Status::Ok();
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

Result<api::GenerationOptions> to_options(const v1::SamplingParams& p, const ServerConfig& config) {
  if (Status status = check_bounds(p, config); !status.ok()) return status;
  api::GenerationOptions options;
  SamplingParams& s = options.sampling;
  if (p.has_temperature()) s.temperature = p.temperature();
  if (p.has_top_k()) s.top_k = p.top_k();
  if (p.has_top_p()) s.top_p = p.top_p();
  if (p.has_min_p()) s.min_p = p.min_p();
  if (p.has_typical_p()) s.typical_p = p.typical_p();
  if (p.has_repetition_penalty()) s.repetition_penalty = p.repetition_penalty();
  if (p.has_presence_penalty()) s.presence_penalty = p.presence_penalty();
  if (p.has_frequency_penalty()) s.frequency_penalty = p.frequency_penalty();
  for (const auto& [token, bias] : p.logit_bias()) s.logit_bias.emplace_back(token, bias);
  if (p.has_seed()) s.seed = p.seed();
  if (p.has_min_tokens()) s.min_tokens = p.min_tokens();
  if (p.has_ignore_eos()) s.ignore_eos = p.ignore_eos();
  s.stop_token_ids.assign(p.stop_token_ids().begin(), p.stop_token_ids().end());
  if (p.has_logprobs()) s.logprobs = p.logprobs();
  if (p.has_prompt_logprobs()) s.prompt_logprobs = p.prompt_logprobs();
  if (p.has_max_tokens()) options.max_tokens = p.max_tokens();
  if (p.has_n()) options.n = p.n();
  options.stop.assign(p.stop().begin(), p.stop().end());
  if (p.has_include_stop_str_in_output()) options.include_stop = p.include_stop_str_in_output();
  if (p.has_skip_special_tokens()) options.skip_special_tokens = p.skip_special_tokens();
  return options;
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
}

}  // namespace headwater::grpc_api
