#include <sys/resource.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>

#include "engine/log.h"
#include "tests/server/http_fixture.h"
#include "tests/support/skip.h"

using namespace headwater;
using namespace headwater::test;
using api::Json;

namespace {

constexpr int kStreams = 2500;
constexpr int kReadTimeoutS = 120;  // for a sanitizer on a busy machine

int64_t resident_bytes() {
  int64_t total_pages = 0, resident_pages = 0;
  std::ifstream("/proc/self/statm") >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

std::string prompt_of(int stream) {
  char text[16];
  std::snprintf(text, sizeof(text), "stream %04d", stream);
  return text;
}

std::string request_of(const std::string& prompt) {
  return post("/v1/completions",
              R"({"stream":true,"max_tokens":)" + std::to_string(prompt.size()) + R"(,"prompt":")" +
                  prompt + "\"}");
}

// The text of a finished stream; its events must end as OpenAI's do.
std::string text_of(const std::string& body) {
  Response response;
  response.body = body;
  const std::vector<std::string> events = response.events();
  REQUIRE(events.size() >= 2);
  CHECK(events.back() == "[DONE]");
  std::string text, finish;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const Json choice = Json::parse(events[i])["choices"].at(0);
    text += choice["text"].get<std::string>();
    if (choice["finish_reason"].is_string()) finish = choice["finish_reason"];
  }
  CHECK(finish == "length");
  return text;
}

}  // namespace

TEST_CASE("http: thousands of streams open at once are each answered with their own text",
          "[server][unit]") {
  rlimit descriptors{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &descriptors) == 0);
  if (descriptors.rlim_max < 2 * kStreams + 100) {  // both ends are in this process
    return testing::skip("the hard limit of descriptors is " +
                         std::to_string(descriptors.rlim_max));
  }
  log::set_level("warn");  // no line per stream
  HttpFixture server;      // raises the soft limit
  const int64_t resident_before = resident_bytes();
  Script script;
  script.held = true;
  server.engine.set_script(script);

  std::vector<Client> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back(server.listener.port(), kReadTimeoutS);
    clients.back().send(request_of(prompt_of(i)));
  }
  for (int tenths = 0; server.engine.num_held() < kStreams && tenths < 600; ++tenths)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  REQUIRE(server.engine.num_held() == kStreams);

  server.engine.release();
  for (Client& client : clients) {
    const Response head = client.receive_response(true);
    REQUIRE(head.status == 200);
    REQUIRE(head.headers.at("content-type").starts_with("text/event-stream"));
  }
  REQUIRE(server.engine.num_running() == kStreams);
  const int64_t per_stream = (resident_bytes() - resident_before) / kStreams;
  std::printf("%d streams open, %.1f KB of resident memory each, the client's side included\n",
              kStreams,
              static_cast<double>(per_stream) / 1e3);

  for (size_t t = 1; t < prompt_of(0).size(); ++t) server.engine.release();
  CHECK(server.engine.num_running() == 0);
  for (int i = 0; i < kStreams; ++i) {
    const std::string body = clients[static_cast<size_t>(i)].receive_chunks();
    REQUIRE(text_of(body) == prompt_of(i));
  }
}
