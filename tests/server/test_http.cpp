#include <catch2/catch.hpp>
#include <thread>

#include "tests/server/http_fixture.h"

using namespace headwater;
using namespace headwater::test;
using api::Json;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

const std::string kChat = R"({"messages":[{"role":"user","content":"Hi"}]})";
const std::string kStream = R"({"stream":true,"messages":[{"role":"user","content":"Hi"}]})";

Script endless(milliseconds step) {
  Script script;
  script.endless = true;
  script.step = step;
  return script;
}

template <typename Condition>
bool eventually(Condition condition) {
  for (int i = 0; i < 500; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(10));
  }
  return false;
}

}  // namespace

TEST_CASE("http: unknown paths, wrong methods, HEAD and OPTIONS", "[server][unit]") {
  HttpFixture server;
  const Response missing = server.ask(get("/nothing"));
  CHECK(missing.status == 404);
  CHECK(missing.json()["error"]["type"] == "not_found_error");
  const Response wrong = server.ask(get("/v1/chat/completions"));
  CHECK(wrong.status == 405);
  CHECK(wrong.headers.at("allow") == "POST, OPTIONS");
  CHECK(wrong.json()["error"].size() == 4);
  CHECK(server.ask("OPTIONS /v1/models HTTP/1.1\r\nHost: t\r\n\r\n" + get("/livez")).status == 204);
  Client client = server.connect();
  client.send("HEAD /v1/models HTTP/1.1\r\nHost: t\r\n\r\n" + get("/livez"));
  CHECK(std::stoi(client.receive_response(/*head_only=*/true).headers.at("content-length")) > 0);
  CHECK(client.receive_response().body == "ok\n");
}

TEST_CASE("http: pipelined requests are answered in order", "[server][unit]") {
  HttpFixture server;
  Client client = server.connect();
  std::string requests = post("/v1/chat/completions", kChat);
  for (int i = 0; i < 50; ++i) requests += get("/v1/models") + get("/version");
  client.send(requests);
  CHECK(client.receive_response().json()["object"] == "chat.completion");
  for (int i = 0; i < 50; ++i) {
    CHECK(client.receive_response().json()["object"] == "list");
    CHECK(client.receive_response().json().contains("version"));
  }
  client.send(post("/v1/chat/completions", kStream) + get("/livez"));
  CHECK(client.receive_response().events().back() == "[DONE]");
  CHECK(client.receive_response().body == "ok\n");
}

TEST_CASE("http: the request id comes back", "[server][unit]") {
  HttpFixture server;
  CHECK(server.ask(get("/livez", "X-Request-Id: abc-1\r\n")).headers.at("x-request-id") == "abc-1");
  CHECK(server.ask(get("/livez")).headers.at("x-request-id").size() == 16);
  CHECK(server.ask(get("/livez", "X-Request-Id: " + std::string(500, 'a') + "\r\n"))
            .headers.at("x-request-id")
            .size() == 16);
}

TEST_CASE("http: broken bodies are explained", "[server][unit]") {
  HttpFixture server;
  std::string nested = R"({"a":)";
  for (int i = 0; i < 100000; ++i) nested += '[';
  std::string wide = "{";
  for (int i = 0; i < 5000; ++i) wide += "\"k" + std::to_string(i) + "\":1,";
  const std::string kBad[] = {"",
                              "{",
                              "[]",
                              "null",
                              "{\"messages\": [}",
                              std::string("\0\1", 2),
                              "{\"messages\":[{\"role\":\"user\",\"content\":\"\xFF\xFE\"}]}",
                              R"({"messages":[{"role":"user","content":"\ud800"}]})",
                              R"({"max_tokens":1e999})",
                              nested,
                              wide + "\"z\":1}"};
  for (const std::string& body : kBad) {
    const Response response = server.ask(post("/v1/chat/completions", body));
    INFO(body.substr(0, 60) << " -> " << response.body);
    CHECK(response.status == 400);
    CHECK_FALSE(response.json()["error"]["message"].get<std::string>().empty());
  }
  CHECK(server.ask(post("/v1/completions", "{\"a\": nope}")).body.find("column") !=
        std::string::npos);
}

TEST_CASE("http: limits on header and body", "[server][unit]") {
  ServerConfig config = test_config();
  config.max_body_bytes = 1000;
  config.max_header_bytes = 2000;
  HttpFixture server(config);
  CHECK(server.ask(post("/v1/chat/completions", std::string(5000, ' '))).status == 413);
  CHECK(
      server.ask("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n")
          .status == 413);
  std::string chunked =
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 10; ++i) chunked += "c8\r\n" + std::string(200, ' ') + "\r\n";
  CHECK(server.ask(chunked).status == 413);
  CHECK(server.ask(get("/livez", "X-Long: " + std::string(100000, 'a') + "\r\n")).status == 431);
  CHECK(server.ask("HELLO\r\n\r\n").status == 400);
  CHECK(server.ask(get("/livez")).status == 200);
}

TEST_CASE("http: slow clients time out, dribbling ones are served", "[server][unit]") {
  ServerConfig config = test_config();
  config.header_timeout = 1;
  config.body_timeout = 1;
  HttpFixture server(config);
  CHECK(server.ask("GET /livez HTTP/1.1\r\nHo").status == 408);
  CHECK(server.ask("POST /tokenize HTTP/1.1\r\nContent-Length: 10\r\n\r\n{").status == 408);
  Client client = server.connect();
  for (const char c : post("/tokenize", R"({"content":"a"})")) {
    client.send(std::string(1, c));
    std::this_thread::sleep_for(milliseconds(1));
  }
  CHECK(client.receive_response().status == 200);
}

TEST_CASE("http: Expect: 100-continue and chunked bodies", "[server][unit]") {
  HttpFixture server;
  Client client = server.connect();
  client.send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n"
      "Content-Length: " +
      std::to_string(kChat.size()) + "\r\n\r\n");
  CHECK(client.receive_until("\r\n\r\n").starts_with("HTTP/1.1 100"));
  client.send(kChat);
  CHECK(client.receive_response().status == 200);
  std::string chunked =
      "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const char c : kChat) chunked += std::string("1\r\n") + c + "\r\n";
  client.send(chunked + "0\r\n\r\n");
  CHECK(client.receive_response().status == 200);
}

TEST_CASE("http: a client that ends its input still gets complete replies", "[server][unit]") {
  HttpFixture server;
  Client client = server.connect();
  client.send(get("/livez") + get("/version"));
  client.half_close();
  CHECK(client.receive_response().status == 200);
  CHECK(client.receive_response().json().contains("version"));
  CHECK(client.receive_all().empty());
}

TEST_CASE("http: a client that leaves cancels its request", "[server][unit]") {
  HttpFixture server;
  server.engine.set_script(endless(milliseconds(5)));
  for (const std::string& body : {kChat, kStream}) {
    Client client = server.connect();
    client.send(post("/v1/chat/completions", body));
    REQUIRE(eventually([&] { return server.engine.num_running() == 1; }));
    client.shut();
    CHECK(server.engine.wait_idle(seconds(2)));
  }
  // As does one that waits for the first token.
  server.engine.set_script(endless(seconds(60)));
  Client client = server.connect();
  client.send(post("/v1/chat/completions", kStream));
  REQUIRE(eventually([&] { return server.engine.num_running() == 1; }));
  client.half_close();
  CHECK(server.engine.wait_idle(seconds(2)));
}

TEST_CASE("http: a client that does not read is dropped", "[server][unit]") {
  ServerConfig config = test_config();
  config.max_send_buffer_bytes = 64 << 10;
  config.write_timeout = 1;
  HttpFixture server(config);
  server.engine.set_script(endless(milliseconds(0)));
  Client client = server.connect();
  client.send(post("/v1/chat/completions", kStream));
  REQUIRE(eventually([&] { return server.engine.num_started() == 1; }));
  CHECK(server.engine.wait_idle(seconds(20)));
}

TEST_CASE("http: silence is broken by pings", "[server][unit]") {
  ServerConfig config = test_config();
  config.sse_ping_interval = 1;
  HttpFixture server(config);
  server.engine.set_script(endless(milliseconds(1500)));
  Client client = server.connect();
  client.send(post("/v1/chat/completions", kStream));
  const std::string start = client.receive_until(": ping\n\n");
  CHECK(start.starts_with("HTTP/1.1 200"));
  CHECK(start.find("data:") == std::string::npos);
}

TEST_CASE("http: many idle connections beside a working one", "[server][unit]") {
  HttpFixture server;
  std::vector<Client> idle;
  for (int i = 0; i < 400; ++i) idle.push_back(server.connect());
  for (Client& client : idle) client.send(get("/livez"));
  for (Client& client : idle) CHECK(client.receive_response().status == 200);
  CHECK(server.ask_chat("").status == 200);
  for (Client& client : idle) client.send(get("/livez"));
  for (Client& client : idle) CHECK(client.receive_response().status == 200);
}

TEST_CASE("http: no room for another connection", "[server][unit]") {
  ServerConfig config = test_config();
  config.max_connections = 2;
  HttpFixture server(config);
  Client first = server.connect();
  Client second = server.connect();
  first.send(get("/livez"));
  second.send(get("/livez"));
  CHECK(first.receive_response().status == 200);
  CHECK(second.receive_response().status == 200);
  Client third = server.connect();
  CHECK(third.receive_response().status == 503);
}

TEST_CASE("http: API key and CORS", "[server][unit]") {
  ServerConfig config = test_config();
  config.api_key = "secret";
  config.cors_origin = "*";
  HttpFixture server(config);
  CHECK(server.ask(get("/health")).status == 200);
  for (const char* header : {"", "Authorization: Bearer secre\r\n", "Authorization: secret\r\n"}) {
    const Response response = server.ask(get("/v1/models", header));
    CHECK(response.status == 401);
    CHECK(response.json()["error"]["code"] == "invalid_api_key");
  }
  const Response right = server.ask(get("/v1/models", "Authorization: Bearer secret\r\n"));
  CHECK(right.status == 200);
  CHECK(right.headers.at("access-control-allow-origin") == "*");
}

TEST_CASE("http: HTTP/1.0 streams end with the connection", "[server][unit]") {
  HttpFixture server;
  Client client = server.connect();
  client.send("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: " +
              std::to_string(kStream.size()) + "\r\n\r\n" + kStream);
  const std::string all = client.receive_all();
  CHECK(all.find("Transfer-Encoding") == std::string::npos);
  CHECK(all.ends_with("data: [DONE]\n\n"));
}

TEST_CASE("http: stop lets replies under way finish", "[server][unit]") {
  HttpFixture server;
  Script script;
  script.step = milliseconds(20);
  server.engine.set_script(script);
  Client client = server.connect();
  client.send(post("/v1/chat/completions", kStream));
  REQUIRE(eventually([&] { return server.engine.num_running() == 1; }));
  server.lifecycle.set_draining();
  CHECK(server.engine.drain(seconds(5)));
  server.listener.stop(seconds(5));
  CHECK(client.receive_response().events().back() == "[DONE]");
}
