#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <thread>

#include "headwater/v1/inference.grpc.pb.h"
#include "kernels/base/status.h"
#include "server/grpc/grpc_server.h"
#include "tests/server/fake_engine.h"

namespace headwater {
namespace {

using Catch::Matchers::Contains;
using Code = grpc::StatusCode;
using std::chrono::milliseconds;

ServerConfig test_config() {
  ServerConfig config;
  config.grpc_port = 0;
  return config;
}

// A server over an engine that says "abcabc..." and a client of it.
struct Rig {
  explicit Rig(const ServerConfig& config = test_config(), milliseconds step = milliseconds(1))
      : service(lifecycle, config), server(service) {
    script.text = "abc";
    script.endless = true;
    script.step = step;
    engine.set_script(script);
    stub = v1::Inference::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(server.port()),
                                                      grpc::InsecureChannelCredentials()));
  }
  ~Rig() {
    server.shutdown(milliseconds(0));
    engine.drain(milliseconds(0));
    engine.wait_idle(milliseconds(5000));
  }

  void attach() {
    service.attach(engine);
    server.set_serving(true);
  }

  test::Script script;
  test::FakeEngine engine;
  Lifecycle lifecycle;
  api::Service service;
  GrpcServer server;
  std::unique_ptr<v1::Inference::Stub> stub;
};

v1::GenerateRequest text_request(const std::string& text, int max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

struct Reply {
  std::map<int, std::string> texts;
  std::map<int, v1::FinishReason> finish;
  std::vector<v1::GenerateResponse> messages;
  grpc::Status status;
};

Reply generate(v1::Inference::Stub& stub,
               const v1::GenerateRequest& request,
               grpc::ClientContext& context) {
  Reply reply;
  const auto reader = stub.Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    if (message.has_piece()) {
      reply.texts[message.piece().index()] += message.piece().text();
      if (message.piece().finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
        reply.finish[message.piece().index()] = message.piece().finish_reason();
      }
    }
    reply.messages.push_back(message);
  }
  reply.status = reader->Finish();
  return reply;
}

Reply generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return generate(stub, request, context);
}

}  // namespace

TEST_CASE("gRPC: Generate streams pieces and then the usage", "[server][unit]") {
  Rig rig;
  rig.attach();
  auto request = text_request("abc", 5);
  request.set_request_id("r1");
  request.mutable_sampling()->set_n(2);
  request.mutable_sampling()->set_logprobs(1);
  const Reply reply = generate(*rig.stub, request);
  REQUIRE(reply.status.ok());
  CHECK(reply.texts.at(0) == "abcab");
  CHECK(reply.texts.at(1) == "abcab");
  CHECK(reply.finish.at(0) == v1::FINISH_REASON_LENGTH);
  const v1::Usage& usage = reply.messages.back().usage();
  CHECK(usage.prompt_tokens() == 3);
  CHECK(usage.completion_tokens() == 10);
  CHECK(usage.kv_bytes() == 200);
  CHECK(usage.kv_bytes_dense() == 800);
  CHECK(reply.messages[0].request_id() == "r1");
  const v1::Piece& first = reply.messages[0].piece();
  REQUIRE(first.logprobs_size() == 1);
  CHECK(first.logprobs(0).chosen().token() == "a");
  CHECK(first.logprobs(0).top_size() == 1);
}

TEST_CASE("gRPC: Chat goes through the template", "[server][unit]") {
  Rig rig;
  rig.attach();
  v1::ChatRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content("hi <|im_end|>");
  request.mutable_sampling()->set_max_tokens(4);
  request.mutable_sampling()->set_logprobs(2);
  request.mutable_sampling()->set_seed(~uint64_t{0});
  (*request.mutable_sampling()->mutable_logit_bias())[7] = -1.5f;
  grpc::ClientContext context;
  const auto reader = rig.stub->Chat(&context, request);
  std::string text;
  for (v1::GenerateResponse response; reader->Read(&response);) text += response.piece().text();
  CHECK(reader->Finish().ok());
  CHECK(text == "abca");
  const Request sent = rig.engine.last_request();
  using Tokens = test::ByteTokenizer;
  CHECK(sent.prompt.front() == Tokens::kStart);
  CHECK(std::count(sent.prompt.begin(), sent.prompt.end(), Tokens::kEnd) == 1);  // not the user's
  CHECK(sent.sampling.logprobs == 2);
  CHECK(sent.sampling.seed == ~uint64_t{0});
  CHECK(sent.sampling.logit_bias == std::vector<std::pair<int32_t, float>>{{7, -1.5f}});

  grpc::ClientContext second;
  const auto empty = rig.stub->Chat(&second, v1::ChatRequest());
  CHECK(empty->Finish().error_code() == Code::INVALID_ARGUMENT);
}

TEST_CASE("gRPC: tokens in, stop strings, default length", "[server][unit]") {
  Rig rig;
  rig.attach();
  v1::GenerateRequest request;
  for (const char c : std::string("xyz")) {
    request.mutable_tokens()->add_ids(static_cast<unsigned char>(c));
  }
  CHECK(generate(*rig.stub, request).texts.at(0) == "abcabcabcabcabca");  // 16 tokens
  CHECK(rig.engine.last_request().prompt == std::vector<int32_t>{'x', 'y', 'z'});
  request.mutable_sampling()->add_stop("ca");
  const Reply reply = generate(*rig.stub, request);
  CHECK(reply.texts.at(0) == "ab");
  CHECK(reply.finish.at(0) == v1::FINISH_REASON_STOP);
  CHECK(reply.messages[reply.messages.size() - 2].piece().stop_text() == "ca");
}

TEST_CASE("gRPC: what is wrong comes back as a code and a field", "[server][unit]") {
  Rig rig;
  rig.attach();
  const auto check = [&](const v1::GenerateRequest& request, Code code, const char* words) {
    const grpc::Status status = generate(*rig.stub, request).status;
    CHECK(status.error_code() == code);
    CHECK_THAT(status.error_message(), Contains(words));
  };
  check({}, Code::INVALID_ARGUMENT, "input");
  auto request = text_request("a", 3);
  request.mutable_sampling()->set_n(1000);
  check(request, Code::INVALID_ARGUMENT, "n must be");
  request = text_request("a", 3);
  request.mutable_sampling()->set_temperature(-1);
  check(request, Code::INVALID_ARGUMENT, "temperature");
  request = text_request("a", 3);
  request.mutable_sampling()->set_prompt_logprobs(-2);
  check(request, Code::INVALID_ARGUMENT, "prompt_logprobs");
  for (int i = 0; i < 5000; ++i) (*request.mutable_sampling()->mutable_logit_bias())[i] = 1;
  check(request, Code::INVALID_ARGUMENT, "logit_bias");
  check(text_request("a", 100000), Code::INVALID_ARGUMENT, "context holds 4096");
  request = text_request("a", 3);
  request.set_model("another");
  check(request, Code::NOT_FOUND, "another");
  request = {};
  request.mutable_tokens()->add_ids(4000000000u);
  check(request, Code::INVALID_ARGUMENT, "below 258");
  rig.script.accept = {headwater::StatusCode::kResourceExhausted, "the queue is full", ""};
  rig.engine.set_script(rig.script);
  check(text_request("a", 3), Code::RESOURCE_EXHAUSTED, "queue is full");
  rig.script.accept = Status::Ok();
  rig.engine.set_script(rig.script);
  rig.lifecycle.set_draining();
  check(text_request("a", 3), Code::UNAVAILABLE, "shutting down");
}

TEST_CASE("gRPC: nothing is served while the model loads", "[server][unit]") {
  Rig rig;
  CHECK(generate(*rig.stub, text_request("a", 1)).status.error_code() == Code::UNAVAILABLE);
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  CHECK(rig.stub->GetModelInfo(&context, {}, &info).error_code() == Code::UNAVAILABLE);
}

TEST_CASE("gRPC: a cancelled call ends the request in the engine", "[server][unit]") {
  Rig rig;
  rig.attach();
  grpc::ClientContext context;
  const auto reader = rig.stub->Generate(&context, text_request("abc", 4000));
  v1::GenerateResponse message;
  REQUIRE(reader->Read(&message));
  context.TryCancel();
  CHECK(rig.engine.wait_idle(milliseconds(5000)));
  CHECK(reader->Finish().error_code() == Code::CANCELLED);
}

TEST_CASE("gRPC: a deadline ends the request", "[server][unit]") {
  Rig rig;
  rig.attach();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(100));
  const Reply reply = generate(*rig.stub, text_request("abc", 4000), context);
  CHECK(reply.status.error_code() == Code::DEADLINE_EXCEEDED);
  CHECK_FALSE(reply.messages.empty());
}

TEST_CASE("gRPC: Abort by id, unknown and duplicate ids", "[server][unit]") {
  Rig rig;
  rig.attach();
  auto request = text_request("abc", 4000);
  request.set_request_id("long");
  grpc::ClientContext context;
  const auto reader = rig.stub->Generate(&context, request);
  v1::GenerateResponse message;
  REQUIRE(reader->Read(&message));

  const grpc::Status duplicate = generate(*rig.stub, request).status;
  CHECK(duplicate.error_code() == Code::INVALID_ARGUMENT);
  CHECK_THAT(duplicate.error_message(), Contains("in use"));

  const auto abort = [&](const std::string& id) {
    grpc::ClientContext own;
    v1::AbortRequest what;
    what.set_request_id(id);
    v1::AbortResponse response;
    return rig.stub->Abort(&own, what, &response).ok();
  };
  CHECK(abort("unknown"));
  CHECK(abort("long"));
  while (reader->Read(&message)) {
  }
  CHECK(reader->Finish().error_code() == Code::ABORTED);
  CHECK(rig.engine.wait_idle(milliseconds(5000)));
  CHECK(generate(*rig.stub, text_request("ab", 2)).texts.at(0) == "ab");
}

TEST_CASE("gRPC: the API key", "[server][unit]") {
  ServerConfig config = test_config();
  config.api_key = "s3cret";
  Rig rig(config);
  rig.attach();
  for (const char* sent : {"", "Bearer s3cre", "Bearer s3cretx", "s3cret"}) {
    grpc::ClientContext context;
    if (*sent != '\0') context.AddMetadata("authorization", sent);
    CHECK(generate(*rig.stub, text_request("a", 1), context).status.error_code() ==
          Code::UNAUTHENTICATED);
  }
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer s3cret");
  CHECK(generate(*rig.stub, text_request("a", 1), context).status.ok());
}

TEST_CASE("gRPC: a client that does not read is dropped", "[server][unit]") {
  ServerConfig config = test_config();
  config.max_send_buffer_bytes = 1 << 14;
  Rig rig(config, milliseconds(0));
  rig.attach();
  auto request = text_request("a", 4000);
  request.mutable_sampling()->set_n(16);
  request.mutable_sampling()->set_logprobs(1);
  grpc::ClientContext context;
  const auto reader = rig.stub->Generate(&context, request);
  CHECK(rig.engine.wait_idle(milliseconds(5000)));
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
  }
  CHECK(reader->Finish().error_code() == Code::RESOURCE_EXHAUSTED);
}

TEST_CASE("gRPC: many streams at once on two threads", "[server][unit]") {
  Rig rig;
  rig.attach();
  std::atomic<int> good{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 32; ++i) {
    clients.emplace_back([&, i] {
      const Reply reply = generate(*rig.stub, text_request("a", 30 + i));
      if (reply.status.ok() && reply.texts.at(0).size() == static_cast<size_t>(30 + i)) ++good;
    });
  }
  for (std::thread& client : clients) client.join();
  CHECK(good == 32);
}

TEST_CASE("gRPC: shutdown waits for calls, then cancels them", "[server][unit]") {
  Rig rig;
  rig.attach();
  grpc::ClientContext context;
  const auto reader = rig.stub->Generate(&context, text_request("abc", 4000));
  v1::GenerateResponse message;
  REQUIRE(reader->Read(&message));
  const auto start = std::chrono::steady_clock::now();
  rig.server.shutdown(milliseconds(200));
  CHECK(std::chrono::steady_clock::now() - start >= milliseconds(150));
  while (reader->Read(&message)) {
  }
  CHECK_FALSE(reader->Finish().ok());
}

TEST_CASE("gRPC: a port in use is refused with what to do", "[server][unit]") {
  Rig rig;
  ServerConfig config = test_config();
  config.grpc_port = rig.server.port();
  Lifecycle lifecycle;
  const api::Service second(lifecycle, config);
  CHECK_THROWS_WITH(GrpcServer(second), Contains("--grpc-port"));
}

}  // namespace headwater
