// http_client: the small asynchronous HTTP/1.1 client of `chat` and `bench`: keep-alive, chunked
// bodies, server-sent events. Coroutines of one io_context that one thread runs.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace headwater::cli {

struct Url {
  std::string host;
  std::string port;
  std::string path;  // "" or "/prefix", without a last slash
};

// "http://127.0.0.1:8000" or "localhost:8000/prefix". Throws ConfigError.
Url parse_url(const std::string& text);

// Splits an event stream into the payloads of its data lines; comments and other fields are
// skipped.
class SseParser {
 public:
  void feed(std::string_view bytes, const std::function<void(std::string_view)>& on_data);

 private:
  std::string line_;
  std::string data_;
  bool has_data_ = false;
};

struct HttpReply {
  int status = 0;
  std::string body;
};

class HttpClient {
 public:
  HttpClient(boost::asio::io_context& io, Url url, std::string api_key);

  // Body "" = GET. A status that is not 2xx is a reply, not an error. Throws
  // boost::system::system_error when the server cannot be reached or breaks off.
  boost::asio::awaitable<HttpReply> request(std::string target, std::string body);

  // POST; each payload goes to on_data as it arrives. The reply's body is empty unless the status
  // is not 200. Throws as request().
  boost::asio::awaitable<HttpReply> stream(std::string target,
                                           std::string body,
                                           std::function<void(std::string_view)> on_data);

  // Breaks off everything under way.
  void close();

 private:
  struct Connection {
    explicit Connection(boost::asio::io_context& io) : stream(io) {}
    boost::beast::tcp_stream stream;
    boost::beast::flat_buffer buffer;
    bool is_reused = false;
  };
  using ConnectionPtr = std::shared_ptr<Connection>;

  boost::asio::awaitable<ConnectionPtr> acquire(bool fresh);
  boost::asio::awaitable<HttpReply> exchange(ConnectionPtr connection,
                                             const std::string& target,
                                             const std::string& body,
                                             const std::function<void(std::string_view)>& on_data,
                                             bool& any_byte);
  boost::asio::awaitable<HttpReply> with_retry(std::string target,
                                               std::string body,
                                               std::function<void(std::string_view)> on_data);

  boost::asio::io_context& io_;  // not owned
  const Url url_;
  const std::string api_key_;
  int64_t num_closes_ = 0;
  std::vector<ConnectionPtr> idle_;
  std::vector<std::weak_ptr<Connection>> open_;
};

}  // namespace headwater::cli
