// SseWriter: server-sent events as bytes of an HTTP/1.x reply. Pure: the session owns the socket
// and the bounded buffer. HTTP/1.1 replies are chunked; HTTP/1.0 ones end with the connection.
#pragma once

#include <string>
#include <string_view>

namespace headwater::http {

class SseWriter {
 public:
  explicit SseWriter(bool chunked) : chunked_(chunked) {}

  // data: one line.
  std::string event(std::string_view data) const;
  // A comment: keeps proxies and clients from giving up during long silence.
  std::string ping() const;
  std::string end() const;
  bool chunked() const { return chunked_; }

 private:
  std::string framed(std::string_view payload) const;

  bool chunked_;
};

}  // namespace headwater::http
