#include "server/grpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <boost/asio/thread_pool.hpp>
#include <string>

#include "server/grpc/inference_service.h"

namespace headwater {
namespace {

std::string address_of(const ServerConfig& config) {
  const bool is_ipv6 = config.host.find(':') != std::string::npos;
  const std::string host = is_ipv6 ? "[" + config.host + "]" : config.host;
  return host + ":" + std::to_string(config.grpc_port);
}

}  // namespace

struct GrpcServer::Impl {
  explicit Impl(const api::Service& api_service)
      : pool(static_cast<size_t>(api_service.config().io_threads)), service(api_service, pool) {}

  boost::asio::thread_pool pool;  // where detokenizing and the calls' strands run
  grpc_api::InferenceService service;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

GrpcServer::GrpcServer(const api::Service& service) : impl_(std::make_unique<Impl>(service)) {
  const ServerConfig& config = service.config();
  grpc::EnableDefaultHealthCheckService(true);
  if (config.grpc_reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  // Without this a second server on the same port would silently share it.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(static_cast<int>(config.max_body_bytes));
  builder.AddListeningPort(address_of(config), grpc::InsecureServerCredentials(), &impl_->port);
  builder.RegisterService(&impl_->service);
  impl_->server = builder.BuildAndStart();
  if (impl_->server == nullptr || impl_->port == 0) {
    throw ConfigError("grpc-port: cannot listen on " + address_of(config) +
                      "; is it in use? Choose another with --grpc-port, or 0 for no gRPC");
  }
  set_serving(false);
}

GrpcServer::~GrpcServer() {
  shutdown(std::chrono::milliseconds(0));
  impl_->pool.join();
}

int GrpcServer::port() const { return impl_->port; }

void GrpcServer::set_serving(bool serving) {
  grpc::HealthCheckServiceInterface* health = impl_->server->GetHealthCheckService();
  health->SetServingStatus(v1::Inference::service_full_name(), serving);
  health->SetServingStatus("", serving);
}

void GrpcServer::shutdown(std::chrono::milliseconds grace) {
  if (impl_->server) impl_->server->Shutdown(std::chrono::system_clock::now() + grace);
}

}  // namespace headwater
