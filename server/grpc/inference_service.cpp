#include "server/grpc/inference_service.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "server/grpc/convert.h"

namespace headwater::grpc_api {
namespace {

constexpr size_t kMaxRequestIdBytes = 256;

// A call that is refused before it begins.
class RefusedStream final : public grpc::ServerWriteReactor<v1::GenerateResponse> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// Takes the same time wherever the two differ.
bool equal_secret(grpc::string_ref a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size() && !b.empty(); ++i) {
    difference |=
        static_cast<unsigned char>(a.data()[i]) ^ static_cast<unsigned char>(b[i % b.size()]);
  }
  return difference == 0;
}

grpc::Status check_request_id(const std::string& id) {
  if (id.size() <= kMaxRequestIdBytes) return grpc::Status::OK;
  return {grpc::StatusCode::INVALID_ARGUMENT,
          "request_id must have at most " + std::to_string(kMaxRequestIdBytes) + " bytes, got " +
              std::to_string(id.size())};
}

Result<api::GenerationRequest> make_generate(const api::Service& service,
                                             const v1::GenerateRequest& request) {
  auto options = completion_options(request.sampling(), service.config());
  if (!options.ok()) return options.status();
  api::GenerationRequest made;
  made.options = std::move(options).value();
  switch (request.input_case()) {
    case v1::GenerateRequest::kText:
      made.prompts.push_back(service.prompts().plain(request.text()));
      break;
    case v1::GenerateRequest::kTokens: {
      auto ids = to_tokens(request.tokens(), service.engine()->model_info().vocab_size);
      if (!ids.ok()) return ids.status();
      made.prompts.push_back(std::move(ids).value());
      break;
    }
    case v1::GenerateRequest::INPUT_NOT_SET:
      return invalid_argument("input: text or tokens must be set", "input");
  }
  return made;
}

Result<api::GenerationRequest> make_chat(const api::Service& service,
                                         const v1::ChatRequest& request) {
  auto options = chat_options(request.sampling(), service.config());
  if (!options.ok()) return options.status();
  if (request.messages_size() == 0) {
    return invalid_argument("messages: at least one is needed", "messages");
  }
  api::GenerationRequest made;
  made.options = std::move(options).value();
  auto messages = nlohmann::ordered_json::array();
  for (const v1::ChatMessage& message : request.messages()) {
    messages.push_back({{"role", message.role()}, {"content", message.content()}});
  }
  auto ids = service.prompts().chat({{"messages", std::move(messages)}});
  if (!ids.ok()) return ids.status();
  made.prompts.push_back(std::move(ids).value());
  return made;
}

}  // namespace

grpc::Status InferenceService::authorize(const grpc::CallbackServerContext& context) const {
  const std::string& key = service_.config().api_key;
  if (key.empty()) return grpc::Status::OK;
  const auto& metadata = context.client_metadata();
  const auto sent = metadata.find("authorization");
  if (sent != metadata.end() && equal_secret(sent->second, "Bearer " + key)) {
    return grpc::Status::OK;
  }
  return {grpc::StatusCode::UNAUTHENTICATED,
          "this server wants its API key in the metadata \"authorization: Bearer KEY\""};
}

std::string InferenceService::request_id_or_new(const std::string& asked) {
  return asked.empty() ? "grpc-" + std::to_string(next_id_.fetch_add(1)) : asked;
}

template <typename Request>
InferenceService::Stream* InferenceService::stream(const Request& request,
                                                   grpc::CallbackServerContext& context,
                                                   MakeRequest<Request> make) {
  if (auto status = authorize(context); !status.ok()) return new RefusedStream(status);
  if (auto status = check_request_id(request.request_id()); !status.ok()) {
    return new RefusedStream(status);
  }
  return StreamCall::start(context,
                           shared_,
                           request_id_or_new(request.request_id()),
                           request.model(),
                           [this, &request, make] { return make(service_, request); });
}

InferenceService::Stream* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const v1::GenerateRequest* request) {
  return stream(*request, *context, make_generate);
}

InferenceService::Stream* InferenceService::Chat(grpc::CallbackServerContext* context,
                                                 const v1::ChatRequest* request) {
  return stream(*request, *context, make_chat);
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const v1::GetModelInfoRequest*,
                                                         v1::GetModelInfoResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  grpc::Status status = authorize(*context);
  const Engine* engine = service_.engine();
  if (status.ok() && engine == nullptr) {
    status = {grpc::StatusCode::UNAVAILABLE, "the model is still loading; try again later"};
  }
  if (status.ok()) {
    const ModelInfo& info = engine->model_info();
    response->set_id(info.id);
    response->set_architecture(info.architecture);
    response->set_weight_format(info.weight_format);
    response->set_weight_bytes(info.weight_bytes);
    response->set_num_parameters(info.num_parameters);
    response->set_vocab_size(info.vocab_size);
    response->set_max_model_len(info.max_model_len);
    response->set_has_chat_template(engine->chat_template() != nullptr);
    for (const int32_t id : engine->eos_token_ids()) response->add_eos_token_ids(id);
    response->set_server_version(HEADWATER_VERSION);
    response->set_attention(info.attention);
  }
  reactor->Finish(status);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Abort(grpc::CallbackServerContext* context,
                                                  const v1::AbortRequest* request,
                                                  v1::AbortResponse*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const grpc::Status status = authorize(*context);
  if (status.ok()) {
    if (const auto call = active_.find(request->request_id())) call->abort();
  }
  reactor->Finish(status);
  return reactor;
}

}  // namespace headwater::grpc_api
