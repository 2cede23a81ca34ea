// InferenceService: proto/headwater/v1/inference.proto over server/api. Its methods run on gRPC's
// threads and return at once.
#pragma once

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <string>

#include "headwater/v1/inference.grpc.pb.h"
#include "server/api/service.h"
#include "server/grpc/stream_call.h"

namespace headwater::grpc_api {

class InferenceService final : public v1::Inference::CallbackService {
 public:
  using Stream = grpc::ServerWriteReactor<v1::GenerateResponse>;

  // Neither is owned.
  InferenceService(const api::Service& service, boost::asio::thread_pool& pool)
      : service_(service), shared_{service, active_, pool} {}

  Stream* Generate(grpc::CallbackServerContext* context,
                   const v1::GenerateRequest* request) override;
  Stream* Chat(grpc::CallbackServerContext* context, const v1::ChatRequest* request) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;

 private:
  template <typename Request>
  using MakeRequest = Result<api::GenerationRequest> (*)(const api::Service&, const Request&);

  // What Generate and Chat share: who may call, under which id. gRPC keeps request and context
  // until the call is done.
  template <typename Request>
  Stream* stream(const Request& request,
                 grpc::CallbackServerContext& context,
                 MakeRequest<Request> make);
  grpc::Status authorize(const grpc::CallbackServerContext& context) const;
  std::string request_id_or_new(const std::string& asked);

  const api::Service& service_;
  ActiveCalls active_;
  const StreamCall::Shared shared_;
  std::atomic<uint64_t> next_id_{1};
};

}  // namespace headwater::grpc_api
