#include <cmath>
#include <cstdio>
#include <string>

#include "engine/request.h"

namespace headwater {
namespace {

constexpr size_t kMaxListEntries = 1024;
constexpr int32_t kMaxLogprobs = 20;

std::string text_of(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%.9g", value);
  return buffer;
}

enum class Low : uint8_t { kIncluded, kExcluded };

struct FloatBound {
  const char* field;
  float SamplingParams::*member;
  float min;
  Low low;
  float max;
};

constexpr FloatBound kFloatBounds[] = {
    {"temperature", &SamplingParams::temperature, 0, Low::kIncluded, 100},
    {"top_p", &SamplingParams::top_p, 0, Low::kExcluded, 1},
    {"min_p", &SamplingParams::min_p, 0, Low::kIncluded, 1},
    {"typical_p", &SamplingParams::typical_p, 0, Low::kExcluded, 1},
    {"repetition_penalty", &SamplingParams::repetition_penalty, 0, Low::kExcluded, 10},
    {"presence_penalty", &SamplingParams::presence_penalty, -2, Low::kIncluded, 2},
    {"frequency_penalty", &SamplingParams::frequency_penalty, -2, Low::kIncluded, 2},
};

Status check_float(const FloatBound& bound, float value) {
  const bool above = bound.low == Low::kIncluded ? value >= bound.min : value > bound.min;
  if (above && value <= bound.max) return Status::Ok();  // NaN fails both
  return invalid_argument(std::string(bound.field) + " must be in " +
                              (bound.low == Low::kIncluded ? "[" : "(") + text_of(bound.min) +
                              ", " + text_of(bound.max) + "], got " + text_of(value),
                          bound.field);
}

Status check_int(const char* field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return Status::Ok();
  return invalid_argument(std::string(field) + " must be in [" + std::to_string(min) + ", " +
                              std::to_string(max) + "], got " + std::to_string(value),
                          field);
}

Status check_at_least(const char* field, int64_t value, int64_t min) {
  if (value >= min) return Status::Ok();
  return invalid_argument(std::string(field) + " must be at least " + std::to_string(min) +
                              ", got " + std::to_string(value),
                          field);
}

Status check_list_size(const char* field, size_t size) {
  if (size <= kMaxListEntries) return Status::Ok();
  return invalid_argument(std::string(field) + " may have at most " +
                              std::to_string(kMaxListEntries) + " entries, got " +
                              std::to_string(size),
                          field);
}

Status check_token_id(const char* field, int32_t id, int32_t vocab_size) {
  if (id >= 0 && id < vocab_size) return Status::Ok();
  return invalid_argument(std::string(field) + " names token id " + std::to_string(id) +
                              ", but the model's vocabulary has ids 0 to " +
                              std::to_string(vocab_size - 1),
                          field);
}

Status check_lists(const SamplingParams& params, int32_t vocab_size) {
  if (Status s = check_list_size("logit_bias", params.logit_bias.size()); !s.ok()) return s;
  for (const auto& [id, bias] : params.logit_bias) {
    if (Status s = check_token_id("logit_bias", id, vocab_size); !s.ok()) return s;
    if (!(bias >= -100.0f && bias <= 100.0f)) {
      return invalid_argument("logit_bias of token " + std::to_string(id) +
                                  " must be in [-100, 100], got " + text_of(bias),
                              "logit_bias");
    }
  }
  if (Status s = check_list_size("stop_token_ids", params.stop_token_ids.size()); !s.ok()) return s;
  for (const int32_t id : params.stop_token_ids) {
    if (Status s = check_token_id("stop_token_ids", id, vocab_size); !s.ok()) return s;
  }
  return Status::Ok();
}

}  // namespace

Status validate(const SamplingParams& params, int32_t vocab_size) {
  for (const FloatBound& bound : kFloatBounds) {
    if (Status s = check_float(bound, params.*bound.member); !s.ok()) return s;
  }
  if (Status s = check_at_least("top_k", params.top_k, -1); !s.ok()) return s;
  if (Status s = check_at_least("max_tokens", params.max_tokens, 0); !s.ok()) return s;
  if (Status s = check_at_least("min_tokens", params.min_tokens, 0); !s.ok()) return s;
  if (params.min_tokens > params.max_tokens) {
    return invalid_argument("min_tokens must be at most max_tokens (" +
                                std::to_string(params.max_tokens) + "), got " +
                                std::to_string(params.min_tokens),
                            "min_tokens");
  }
  if (Status s = check_int("logprobs", params.logprobs, -1, kMaxLogprobs); !s.ok()) return s;
  if (Status s = check_int("prompt_logprobs", params.prompt_logprobs, -1, kMaxLogprobs); !s.ok()) {
    return s;
  }
  return check_lists(params, vocab_size);
}

}  // namespace headwater
