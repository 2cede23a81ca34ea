// `headwater serve` from its configuration to its exit code, on a device that breaks under way.
#include <grpcpp/grpcpp.h>

#include <catch2/catch.hpp>
#include <future>
#include <thread>

#include "headwater/v1/inference.grpc.pb.h"
#include "server/cli/serve.h"
#include "tests/server/http_fixture.h"
#include "tests/support/faulty_ops.h"
#include "tests/support/skip.h"
#include "tests/support/temp_file.h"
#include "tests/support/test_device.h"
#include "tests/support/tiny_model.h"

namespace headwater {
namespace {

using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using test::Client;

std::string free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  socklen_t size = sizeof address;
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  REQUIRE(bind(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0);
  REQUIRE(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  close(fd);
  return std::to_string(ntohs(address.sin_port));
}

test::Response ask(uint16_t port, const std::string& request) {
  Client client(port, 30);
  client.send(request);
  return client.receive_response();
}

std::string completion(bool stream) {
  return test::post(
      "/v1/completions",
      std::string(R"({"prompt":"abc","max_tokens":2000,"ignore_eos":true,"stream":)") +
          (stream ? "true}" : "false}"));
}

struct Serving {
  testing::TempFolder folder;
  std::string http = free_port(), grpc = free_port();
  std::shared_ptr<testing::Fuse> fuse = std::make_shared<testing::Fuse>();
  std::future<int> exit_code;

  Serving(const testing::TestDevice& device, const testing::Fault& fault, int64_t calls_left) {
    fuse->fault = fault;
    fuse->calls_left = calls_left;
    const std::string model = folder.path().string() + "/tiny.gguf";
    testing::write_tiny_gguf(model);
    exit_code = std::async(std::launch::async, [=, this] {
      const std::vector<std::string> args = {"--model",
                                             model,
                                             "--port",
                                             http,
                                             "--grpc-port",
                                             grpc,
                                             "--kv-cache-bytes",
                                             "8M",
                                             "--log-level",
                                             "off"};
      const auto on_device = [&](const EngineConfig&, ThreadPool& pool) {
        return std::make_unique<testing::FaultyOps>(testing::make_ops(device, pool), fuse);
      };
      return cli::serve(load_config(args, {}),
                        [&](const EngineConfig& config, const LoadProgress& progress) {
                          return make_engine(config, progress, on_device);
                        });
    });
  }
  uint16_t port() const { return static_cast<uint16_t>(std::stoi(http)); }
  void wait_until_ready() {
    while (ask(port(), test::get("/readyz")).status != 200) {
      REQUIRE(exit_code.wait_for(10ms) == std::future_status::timeout);
    }
  }
};

grpc::Status generate(const std::string& port, std::promise<void>& started) {
  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel("127.0.0.1:" + port, grpc::InsecureChannelCredentials()));
  v1::GenerateRequest request;
  request.set_text("abc");
  request.mutable_sampling()->set_max_tokens(2000);
  request.mutable_sampling()->set_ignore_eos(true);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  v1::GenerateResponse message;
  if (reader->Read(&message)) started.set_value();
  while (reader->Read(&message)) {
  }
  return reader->Finish();
}

void check_failure(const testing::TestDevice& device, const testing::Fault& fault) {
  Serving server(device, fault, testing::Fuse::kUnlit);
  server.wait_until_ready();
  REQUIRE(ask(server.port(), test::get("/health")).status == 200);

  Client stream(server.port(), 30), whole(server.port(), 30);
  stream.send(completion(true));
  REQUIRE_THAT(stream.receive_until("data: "), Contains("200 OK"));
  whole.send(completion(false));
  std::promise<void> started;
  auto call = std::async(std::launch::async, [&] { return generate(server.grpc, started); });
  REQUIRE(started.get_future().wait_for(30s) == std::future_status::ready);
  server.fuse->calls_left = 10;

  const std::string events = stream.receive_all();
  CHECK_THAT(events.substr(events.rfind("data: ")),
             Contains(R"("type":"server_error")") && Contains(fault.words));
  // Where it is still there to be asked, it is not healthy.
  const int health = ask(server.port(), test::get("/health")).status;
  CHECK((health == 503 || health == 0));
  const test::Response reply = whole.receive_response();
  CHECK(reply.status == 500);
  CHECK(reply.json()["error"]["type"] == "server_error");
  CHECK_THAT(reply.json()["error"]["message"].get<std::string>(), Contains(fault.words));
  const grpc::Status status = call.get();
  CHECK(status.error_code() == grpc::StatusCode::INTERNAL);
  CHECK_THAT(status.error_message(), Contains(fault.words));
  REQUIRE(server.exit_code.wait_for(60s) == std::future_status::ready);
  CHECK(server.exit_code.get() == 1);
}

}  // namespace

TEST_CASE("serve: a device that breaks while loading is the error of the process",
          "[server][unit][device]") {
  const auto device = testing::each_device();
  if (!device) return;
  Serving server(*device, testing::out_of_memory(device->name), 5);
  CHECK_THROWS_WITH(server.exit_code.get(), Contains(server.fuse->fault.words));
}

TEST_CASE("serve: a device that breaks in a step answers every request and ends the process",
          "[server][unit][device]") {
  const auto device = testing::each_device();
  if (!device) return;
  check_failure(*device, testing::out_of_memory(device->name));
}

// Last: nothing of this process reaches the GPU after it.
TEST_CASE("serve: a kernel that reads what is not there", "[server][cuda]") {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty())
    return testing::skip(obstacle);
  check_failure({"cuda"}, testing::killed_context());
}

}  // namespace headwater
