// HttpFixture: a listener over a FakeEngine; Client: a raw socket that speaks HTTP by hand.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/api/json_body.h"
#include "server/http/listener.h"
#include "tests/server/fake_engine.h"

namespace headwater::test {

struct Response {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // without chunk framing
  api::Json json() const { return api::Json::parse(body); }
  // The data of each event of a stream.
  std::vector<std::string> events() const {
    std::vector<std::string> found;
    for (size_t pos = 0; (pos = body.find("data: ", pos)) != std::string::npos;) {
      const size_t end = body.find("\n\n", pos);
      found.push_back(body.substr(pos + 6, end - pos - 6));
      pos = end;
    }
    return found;
  }
};

class Client final {
 public:
  // timeout_s: a read that waits longer ends as if the server had closed.
  explicit Client(uint16_t port, int timeout_s = 10) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval timeout{timeout_s, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) shut();
  }
  Client(Client&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), buffer_(std::move(other.buffer_)) {}
  ~Client() { shut(); }

  void shut() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }
  void half_close() { shutdown(fd_, SHUT_WR); }
  void send(const std::string& bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t n = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<size_t>(n);
    }
  }
  // False at the end of input, or after ten seconds of silence.
  bool receive_more() {
    char chunk[16384];
    const ssize_t n = recv(fd_, chunk, sizeof chunk, 0);
    if (n > 0) buffer_.append(chunk, static_cast<size_t>(n));
    return n > 0;
  }
  std::string receive_until(const std::string& text) {
    size_t end;
    while ((end = buffer_.find(text)) == std::string::npos) {
      if (!receive_more()) return std::exchange(buffer_, "");
    }
    std::string found = buffer_.substr(0, end + text.size());
    buffer_.erase(0, found.size());
    return found;
  }
  std::string receive_all() {
    while (receive_more()) {
    }
    return std::exchange(buffer_, "");
  }
  Response receive_response(bool head_only = false) {
    Response response;
    std::string head = receive_until("\r\n\r\n");
    if (head.size() < 12) return response;
    response.status = std::stoi(head.substr(9, 3));
    for (size_t pos = head.find("\r\n") + 2; pos + 2 < head.size();) {
      const size_t end = head.find("\r\n", pos);
      const size_t colon = head.find(": ", pos);
      std::string name = head.substr(pos, colon - pos);
      for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      response.headers[name] = head.substr(colon + 2, end - colon - 2);
      pos = end + 2;
    }
    if (head_only) return response;
    response.body = response.headers.count("transfer-encoding") > 0
                        ? receive_chunks()
                        : receive_exactly(std::stoul("0" + response.headers["content-length"]));
    return response;
  }
  // A chunked body, to its end.
  std::string receive_chunks() {
    std::string body;
    for (;;) {
      const std::string head = receive_until("\r\n");
      const size_t size = head.empty() ? 0 : std::stoul(head, nullptr, 16);
      const std::string chunk = receive_exactly(size + 2);
      if (size == 0 || chunk.size() < size + 2) return body;
      body += chunk.substr(0, size);
    }
  }

 private:
  std::string receive_exactly(size_t size) {
    while (buffer_.size() < size && receive_more()) {
    }
    std::string bytes = buffer_.substr(0, size);
    buffer_.erase(0, bytes.size());
    return bytes;
  }

  int fd_;
  std::string buffer_;
};

inline ServerConfig test_config() {
  ServerConfig config;
  config.port = 0;
  return config;
}

inline std::string post(const std::string& path,
                        const std::string& body,
                        const std::string& headers = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: t\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

inline std::string get(const std::string& path, const std::string& headers = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: t\r\n" + headers + "\r\n";
}

struct HttpFixture {
  explicit HttpFixture(const ServerConfig& config = test_config(), bool attach = true)
      : service(lifecycle, config), listener({service, metrics}) {
    if (attach) service.attach(engine);
  }
  ~HttpFixture() {
    engine.drain(std::chrono::milliseconds(0));
    listener.stop(std::chrono::milliseconds(500));
  }

  Client connect() const { return Client(listener.port()); }
  Response ask(const std::string& request) const {
    Client client = connect();
    client.send(request);
    return client.receive_response();
  }
  Response ask_chat(const std::string& fields) const {
    return ask(post("/v1/chat/completions",
                    R"({"messages":[{"role":"user","content":"Hi"}])" + fields + "}"));
  }
  Response ask_completion(const std::string& body) const {
    return ask(post("/v1/completions", body));
  }

  FakeEngine engine;
  Lifecycle lifecycle;
  HttpMetrics metrics;
  api::Service service;
  http::Listener listener;
};

}  // namespace headwater::test
