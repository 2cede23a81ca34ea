#include "server/api/openai_schema.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include "server/api/field_reader.h"

namespace headwater::api {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr int64_t kMinInt64 = std::numeric_limits<int64_t>::min();
constexpr size_t kMaxPrompts = 1024;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxStopTokens = 1024;
constexpr size_t kMaxIds = size_t{1} << 24;
constexpr int32_t kCompletionMaxTokens = 16;  // OpenAI's default of /v1/completions

// Their bounds are the engine's: validate() in engine/request.h.
struct FloatField {
  const char* name;
  float SamplingParams::*member;
};

constexpr FloatField kFloatFields[] = {
    {"temperature", &SamplingParams::temperature},
    {"top_p", &SamplingParams::top_p},
    {"min_p", &SamplingParams::min_p},
    {"typical_p", &SamplingParams::typical_p},
    {"repetition_penalty", &SamplingParams::repetition_penalty},
    {"presence_penalty", &SamplingParams::presence_penalty},
    {"frequency_penalty", &SamplingParams::frequency_penalty},
};

// What OpenAI knows and this server does not act on.
constexpr const char* kWithoutEffect[] = {"audio",
                                          "function_call",
                                          "functions",
                                          "modalities",
                                          "parallel_tool_calls",
                                          "prediction",
                                          "reasoning_effort",
                                          "response_format",
                                          "tool_choice",
                                          "verbosity",
                                          "web_search_options"};

std::vector<std::string> fields_without_effect(const Json& body) {
  std::vector<std::string> found;
  for (const char* name : kWithoutEffect) {
    const auto it = body.find(name);
    if (it != body.end() && !it->is_null()) found.emplace_back(name);
  }
  return found;
}

void read_stop(FieldReader& fields, GenerationOptions& options) {
  const Json* stop = fields.find("stop");
  if (stop == nullptr) return;
  const Json list = stop->is_array() ? *stop : Json::array({*stop});
  if (list.size() > kMaxStops) {
    return fields.fail("stop",
                       "takes at most " + std::to_string(kMaxStops) + " strings, got " +
                           std::to_string(list.size()));
  }
  for (const Json& item : list) {
    const std::string text = item.is_string() ? item.get<std::string>() : "";
    if (text.empty() || text.size() > kMaxStopBytes) {
      return fields.fail("stop",
                         "must be a string or a list of strings of 1 to " +
                             std::to_string(kMaxStopBytes) + " bytes each");
    }
    options.stop.push_back(text);
  }
}

void read_logit_bias(FieldReader& fields, SamplingParams& sampling) {
  const Json* bias = fields.find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) {
    return fields.fail("logit_bias", "must be an object of token id to bias");
  }
  for (auto it = bias->begin(); it != bias->end(); ++it) {
    int32_t id = -1;
    const std::string& key = it.key();
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      return fields.fail("logit_bias", "has the key '" + key + "', expected a token id");
    }
    if (!it->is_number()) return fields.fail("logit_bias", "for token " + key + " is no number");
    sampling.logit_bias.emplace_back(id, it->get<float>());
  }
}

void read_attention(FieldReader& fields, AttentionRequest& attention) {
  const Json* value = fields.find("attention");
  if (value == nullptr) return;
  if (!value->is_object()) return fields.fail("attention", "must be an object");
  FieldReader nested(*value, "attention.");
  nested.read("policy", attention.policy);
  int64_t kv_budget = 0, selection_budget = 0;
  nested.read("kv_budget", 1, kMaxInt64, kv_budget);
  nested.read("selection_budget", 1, kMaxInt64, selection_budget);
  if (kv_budget > 0) attention.kv_budget = kv_budget;
  if (selection_budget > 0) attention.selection_budget = selection_budget;
  int32_t faithful = -1;
  nested.read("faithful_tokens", 0, kMaxInt32, faithful);
  if (faithful >= 0) attention.faithful_tokens = faithful;
  fields.merge(nested.status());
}

void read_stream(FieldReader& fields, StreamOptions& stream) {
  fields.read("stream", stream.enabled);
  const Json* value = fields.find("stream_options");
  if (value == nullptr) return;
  if (!value->is_object()) return fields.fail("stream_options", "must be an object");
  if (!stream.enabled) return fields.fail("stream_options", "is only allowed with stream: true");
  FieldReader nested(*value, "stream_options.");
  nested.read("include_usage", stream.include_usage);
  nested.read("continuous_usage_stats", stream.continuous_usage);
  fields.merge(nested.status());
}

// Everything chat and completions share but max_tokens and logprobs.
void read_options(FieldReader& fields, const ServerConfig& config, GenerationOptions& options) {
  SamplingParams& sampling = options.sampling;
  for (const FloatField& field : kFloatFields) {
    fields.read(field.name, sampling.*field.member);
  }
  fields.read("top_k", -1, kMaxInt32, sampling.top_k);
  fields.read("min_tokens", 0, kMaxInt32, sampling.min_tokens);
  fields.read("ignore_eos", sampling.ignore_eos);
  fields.read_ids("stop_token_ids", kMaxStopTokens, sampling.stop_token_ids);
  if (fields.find("seed") != nullptr) {
    int64_t seed = 0;
    fields.read("seed", kMinInt64, kMaxInt64, seed);
    sampling.seed = static_cast<uint64_t>(seed);
  }
  read_logit_bias(fields, sampling);
  fields.read("n", 1, config.max_choices, options.n);
  int32_t best_of = options.n;
  fields.read("best_of", 1, config.max_choices, best_of);
  if (best_of != options.n) fields.fail("best_of", "other than n is not supported");
  read_stop(fields, options);
  fields.read("include_stop_str_in_output", options.include_stop);
  fields.read("skip_special_tokens", options.skip_special_tokens);
  read_attention(fields, options.attention);
}

void read_max_tokens(FieldReader& fields,
                     const char* name,
                     int32_t min,
                     GenerationOptions& options) {
  if (fields.find(name) == nullptr) return;
  int32_t max_tokens = 0;
  fields.read(name, min, kMaxInt32, max_tokens);
  options.max_tokens = max_tokens;
}

void check_min_tokens(FieldReader& fields, const GenerationOptions& options) {
  if (options.max_tokens && options.sampling.min_tokens > *options.max_tokens) {
    fields.fail("min_tokens",
                "must not exceed max_tokens, which is " + std::to_string(*options.max_tokens));
  }
}

bool is_text(const Json& value) { return value.is_string(); }
bool is_ids(const Json& value) {
  return value.is_array() && !value.empty() && value.front().is_number();
}

void read_prompts(FieldReader& fields, std::vector<PromptInput>& prompts) {
  const Json* prompt = fields.find("prompt");
  const std::string expected =
      "must be a string, a list of strings, a list of token ids or a list "
      "of such lists, none of them empty";
  if (prompt == nullptr) return fields.fail("prompt", expected);
  const auto add = [&](const Json& item) {
    if (is_text(item)) {
      prompts.emplace_back(item.get<std::string>());
    } else if (is_ids(item)) {
      std::vector<int32_t> ids;
      if (fields.to_ids(item, "prompt", kMaxIds, ids)) prompts.emplace_back(std::move(ids));
    } else {
      fields.fail("prompt", expected);
    }
  };
  if (is_text(*prompt) || is_ids(*prompt)) return add(*prompt);
  if (!prompt->is_array() || prompt->empty()) return fields.fail("prompt", expected);
  if (prompt->size() > kMaxPrompts) {
    return fields.fail("prompt",
                       "takes at most " + std::to_string(kMaxPrompts) + " prompts, got " +
                           std::to_string(prompt->size()));
  }
  for (const Json& item : *prompt) add(item);
}

// The variables of a chat template out of the body of a chat or /tokenize request.
Json read_variables(FieldReader& fields) {
  Json variables = Json::object();
  if (const Json* kwargs = fields.find("chat_template_kwargs")) {
    if (!kwargs->is_object()) {
      fields.fail("chat_template_kwargs", "must be an object");
      return variables;
    }
    variables = *kwargs;
  }
  const Json* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    fields.fail("messages", "must be a list with at least one message");
    return variables;
  }
  variables["messages"] = *messages;
  variables["tools"] = nullptr;
  if (const Json* tools = fields.find("tools"); tools != nullptr && !tools->empty()) {
    if (!tools->is_array()) fields.fail("tools", "must be a list of objects");
    variables["tools"] = *tools;
  }
  bool add_generation_prompt = true;
  fields.read("add_generation_prompt", add_generation_prompt);
  variables["add_generation_prompt"] = add_generation_prompt;
  return variables;
}

}  // namespace

Result<ChatRequest> parse_chat_request(const Json& body, const ServerConfig& config) {
  ChatRequest request;
  FieldReader fields(body);
  fields.read("model", request.model);
  request.variables = read_variables(fields);
  read_options(fields, config, request.options);
  read_max_tokens(fields, "max_tokens", 1, request.options);
  read_max_tokens(fields, "max_completion_tokens", 1, request.options);
  request.options.default_max_tokens = config.default_max_tokens;
  check_min_tokens(fields, request.options);

  bool logprobs = false;
  int32_t top_logprobs = 0;
  fields.read("logprobs", logprobs);
  fields.read("top_logprobs", 0, config.max_logprobs, top_logprobs);
  if (top_logprobs > 0 && !logprobs) fields.fail("top_logprobs", "needs logprobs: true");
  if (logprobs) request.options.sampling.logprobs = top_logprobs;

  read_stream(fields, request.stream);
  request.ignored = fields_without_effect(body);
  if (!fields.status().ok()) return fields.status();
  return request;
}

Result<CompletionRequest> parse_completion_request(const Json& body, const ServerConfig& config) {
  CompletionRequest request;
  FieldReader fields(body);
  fields.read("model", request.model);
  read_prompts(fields, request.prompts);
  read_options(fields, config, request.options);
  read_max_tokens(fields, "max_tokens", 0, request.options);
  request.options.default_max_tokens = kCompletionMaxTokens;
  check_min_tokens(fields, request.options);
  fields.read("echo", request.echo);
  std::string suffix;
  fields.read("suffix", suffix);
  if (!suffix.empty()) fields.fail("suffix", "is not supported");

  SamplingParams& sampling = request.options.sampling;
  fields.read("logprobs", 0, config.max_logprobs, sampling.logprobs);
  if (request.echo) sampling.prompt_logprobs = sampling.logprobs;

  read_stream(fields, request.stream);
  request.ignored = fields_without_effect(body);
  if (!fields.status().ok()) return fields.status();
  return request;
}

Result<TokenizeRequest> parse_tokenize_request(const Json& body) {
  TokenizeRequest request;
  FieldReader fields(body);
  fields.read("model", request.model);
  if (fields.find("messages") != nullptr) {
    request.input = read_variables(fields);
  } else {
    request.llama_server_shape = fields.find("content") != nullptr;
    const char* name = request.llama_server_shape ? "content" : "prompt";
    if (fields.find(name) == nullptr) fields.fail("prompt", "(or messages, or content) is missing");
    std::string text;
    fields.read(name, text);
    request.input = std::move(text);
  }
  if (request.llama_server_shape) {
    request.add_special = false;
    fields.read("add_special", request.add_special);
    fields.read("with_pieces", request.with_pieces);
  } else {
    fields.read("add_special_tokens", request.add_special);
    fields.read("return_token_strs", request.with_pieces);
  }
  if (!fields.status().ok()) return fields.status();
  return request;
}

Result<std::vector<int32_t>> parse_detokenize_request(const Json& body) {
  FieldReader fields(body);
  std::vector<int32_t> ids;
  if (fields.find("tokens") == nullptr) fields.fail("tokens", "is missing");
  fields.read_ids("tokens", kMaxIds, ids);
  if (!fields.status().ok()) return fields.status();
  return ids;
}

}  // namespace headwater::api
