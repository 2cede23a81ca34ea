#include "server/cli/http_client.h"

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http.hpp>
#include <utility>

#include "kernels/base/status.h"

namespace headwater::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr size_t kMaxReplyBytes = 64 << 20;

}  // namespace

Url parse_url(const std::string& text) {
  std::string rest = text;
  if (const size_t scheme = rest.find("://"); scheme != std::string::npos) {
    if (rest.substr(0, scheme) != "http") {
      throw ConfigError("url: must begin with http:// (the client knows no TLS), got \"" + text +
                        "\"");
    }
    rest = rest.substr(scheme + 3);
  }
  Url url;
  if (const size_t slash = rest.find('/'); slash != std::string::npos) {
    url.path = rest.substr(slash);
    rest = rest.substr(0, slash);
    while (url.path.ends_with('/')) url.path.pop_back();
  }
  size_t colon = rest.rfind(':');
  if (rest.starts_with('[')) {
    const size_t bracket = rest.find(']');
    colon = bracket == std::string::npos ? colon : rest.find(':', bracket);
    url.host = rest.substr(1, bracket == std::string::npos ? bracket : bracket - 1);
  } else {
    url.host = rest.substr(0, colon);
  }
  url.port = colon == std::string::npos ? "80" : rest.substr(colon + 1);
  if (url.host.empty() || url.port.empty() ||
      url.port.find_first_not_of("0123456789") != std::string::npos) {
    throw ConfigError("url: must look like http://127.0.0.1:8000, got \"" + text + "\"");
  }
  return url;
}

void SseParser::feed(std::string_view bytes, const std::function<void(std::string_view)>& on_data) {
  for (const char c : bytes) {
    if (c != '\n') {
      line_ += c;
      continue;
    }
    if (line_.ends_with('\r')) line_.pop_back();
    if (line_.empty()) {
      if (has_data_) on_data(data_);
      data_.clear();
      has_data_ = false;
    } else if (line_.starts_with("data:")) {
      if (has_data_) data_ += '\n';
      data_ += std::string_view(line_).substr(line_.starts_with("data: ") ? 6 : 5);
      has_data_ = true;
    }
    line_.clear();
  }
}

HttpClient::HttpClient(asio::io_context& io, Url url, std::string api_key)
    : io_(io), url_(std::move(url)), api_key_(std::move(api_key)) {}

asio::awaitable<HttpReply> HttpClient::request(std::string target, std::string body) {
  co_return co_await with_retry(std::move(target), std::move(body), nullptr);
}

asio::awaitable<HttpReply> HttpClient::stream(std::string target,
                                              std::string body,
                                              std::function<void(std::string_view)> on_data) {
  co_return co_await with_retry(std::move(target), std::move(body), std::move(on_data));
}

void HttpClient::close() {
  ++num_closes_;
  idle_.clear();
  for (const auto& weak : open_) {
    if (const auto connection = weak.lock()) connection->stream.close();
  }
  open_.clear();
}

asio::awaitable<HttpClient::ConnectionPtr> HttpClient::acquire(bool fresh) {
  if (!fresh && !idle_.empty()) {
    ConnectionPtr connection = std::move(idle_.back());
    idle_.pop_back();
    connection->is_reused = true;
    co_return connection;
  }
  auto connection = std::make_shared<Connection>(io_);
  std::erase_if(open_, [](const auto& weak) { return weak.expired(); });
  open_.push_back(connection);
  asio::ip::tcp::resolver resolver(io_);
  const auto endpoints = co_await resolver.async_resolve(url_.host, url_.port, asio::use_awaitable);
  co_await connection->stream.async_connect(endpoints, asio::use_awaitable);
  connection->stream.socket().set_option(asio::ip::tcp::no_delay(true));
  co_return connection;
}

asio::awaitable<HttpReply> HttpClient::with_retry(std::string target,
                                                  std::string body,
                                                  std::function<void(std::string_view)> on_data) {
  // The server may close an idle connection just when it is reused: then, and only when nothing was
  // answered, the request is sent again on a fresh one.
  const int64_t closes = num_closes_;
  for (bool fresh = false;; fresh = true) {
    const ConnectionPtr connection = co_await acquire(fresh);
    bool any_byte = false;
    try {
      co_return co_await exchange(connection, target, body, on_data, any_byte);
    } catch (const boost::system::system_error&) {
      if (fresh || !connection->is_reused || any_byte || num_closes_ != closes) throw;
    }
  }
}

asio::awaitable<HttpReply> HttpClient::exchange(
    ConnectionPtr connection,
    const std::string& target,
    const std::string& body,
    const std::function<void(std::string_view)>& on_data,
    bool& any_byte) {
  http::request<http::string_body> request(
      body.empty() ? http::verb::get : http::verb::post, url_.path + target, 11);
  request.set(http::field::host, url_.host + ":" + url_.port);
  request.set(http::field::user_agent, "headwater");
  if (!api_key_.empty()) request.set(http::field::authorization, "Bearer " + api_key_);
  if (!body.empty()) {
    request.set(http::field::content_type, "application/json");
    request.body() = body;
  }
  request.prepare_payload();
  co_await http::async_write(connection->stream, request, asio::use_awaitable);

  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  co_await http::async_read_header(
      connection->stream, connection->buffer, parser, asio::use_awaitable);
  any_byte = true;
  HttpReply reply;
  reply.status = static_cast<int>(parser.get().result_int());
  const bool is_stream = on_data != nullptr && reply.status == 200;
  SseParser events;
  std::array<char, 16384> chunk;
  while (!parser.is_done()) {
    parser.get().body().data = chunk.data();
    parser.get().body().size = chunk.size();
    boost::system::error_code error;
    co_await http::async_read_some(connection->stream,
                                   connection->buffer,
                                   parser,
                                   asio::redirect_error(asio::use_awaitable, error));
    if (error && error != http::error::need_buffer) throw boost::system::system_error(error);
    const std::string_view bytes(chunk.data(), chunk.size() - parser.get().body().size);
    if (is_stream) {
      events.feed(bytes, on_data);
    } else if (reply.body.size() + bytes.size() <= kMaxReplyBytes) {
      reply.body += bytes;
    } else {
      throw boost::system::system_error(http::make_error_code(http::error::body_limit));
    }
  }
  if (parser.keep_alive()) idle_.push_back(std::move(connection));
  co_return reply;
}

}  // namespace headwater::cli
