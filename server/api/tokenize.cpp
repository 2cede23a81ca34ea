#include "server/api/tokenize.h"

#include <string>
#include <utility>

#include "engine/text/detokenizer.h"
#include "server/api/openai_schema.h"
#include "server/api/responder.h"

namespace headwater::api {
namespace {

// llama-server: the text of a token, or its bytes where they are no text of their own.
Json piece_json(const Tokenizer& tokenizer, int32_t id) {
  const std::string bytes = tokenizer.token_bytes(id, /*with_special=*/true);
  if (token_string(tokenizer, id) == bytes) return bytes;
  Json list = Json::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

Result<std::vector<int32_t>> to_ids(const Service& service, TokenizeRequest& request) {
  if (auto* variables = std::get_if<Json>(&request.input)) {
    return service.prompts().chat(std::move(*variables));
  }
  return service.engine()->tokenizer().encode(
      std::get<std::string>(request.input), request.add_special, /*parse_special=*/false);
}

}  // namespace

Result<Json> tokenize(const Service& service, const Json& body) {
  if (service.engine() == nullptr) return service.lifecycle().accepting();
  Result<TokenizeRequest> parsed = parse_tokenize_request(body);
  if (!parsed.ok()) return parsed.status();
  TokenizeRequest& request = parsed.value();
  if (Status status = service.check_model(request.model); !status.ok()) return status;
  Result<std::vector<int32_t>> ids = to_ids(service, request);
  if (!ids.ok()) return ids.status();

  const Tokenizer& tokenizer = service.engine()->tokenizer();
  Json reply = Json::object();
  if (request.llama_server_shape) {
    Json tokens = Json::array();
    for (const int32_t id : ids.value()) {
      if (request.with_pieces) {
        tokens.push_back(Json::object({{"id", id}, {"piece", piece_json(tokenizer, id)}}));
      } else {
        tokens.push_back(id);
      }
    }
    reply["tokens"] = std::move(tokens);
    return reply;
  }
  reply["count"] = ids.value().size();
  reply["max_model_len"] = service.engine()->model_info().max_model_len;
  reply["tokens"] = ids.value();
  reply["token_strs"] = nullptr;
  if (request.with_pieces) {
    Json texts = Json::array();
    for (const int32_t id : ids.value()) texts.push_back(std::string(tokenizer.token_text(id)));
    reply["token_strs"] = std::move(texts);
  }
  return reply;
}

Result<Json> detokenize(const Service& service, const Json& body) {
  if (service.engine() == nullptr) return service.lifecycle().accepting();
  const Result<std::vector<int32_t>> ids = parse_detokenize_request(body);
  if (!ids.ok()) return ids.status();
  const Tokenizer& tokenizer = service.engine()->tokenizer();
  Detokenizer detokenizer(tokenizer, /*skip_special=*/false, /*at_start=*/true);
  std::string text;
  for (const int32_t id : ids.value()) {
    if (id >= tokenizer.vocab_size()) {
      return invalid_argument("tokens has the id " + std::to_string(id) +
                                  "; the model knows 0 to " +
                                  std::to_string(tokenizer.vocab_size() - 1),
                              "tokens");
    }
    text += detokenizer.push(id);
  }
  text += detokenizer.flush();
  return Json{{"prompt", text}, {"content", text}};
}

}  // namespace headwater::api
