#include "server/http/session.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/http/status.hpp>
#include <cstdio>
#include <random>
#include <utility>

#include "engine/log.h"
#include "server/api/error_map.h"

namespace headwater::http {
namespace {

namespace asio = boost::asio;
namespace beast_http = boost::beast::http;
using SteadyClock = std::chrono::steady_clock;

constexpr size_t kIdleReadBytes = 2 << 10;
constexpr size_t kBodyReadBytes = 16 << 10;
// Idle connections give back output buffers beyond this.
constexpr size_t kKeptBufferBytes = 4 << 10;
// Further requests that may wait in the buffer while one is handled.
constexpr size_t kMaxPipelinedBytes = 64 << 10;
constexpr size_t kMaxRequestIdBytes = 128;
constexpr std::chrono::seconds kLingerTime{2};

std::string random_id() {
  std::random_device random;
  char hex[17];
  std::snprintf(hex, sizeof hex, "%08x%08x", random(), random());
  return hex;
}

// What may go back into a header: printable ASCII of a sensible length.
bool is_echoable(std::string_view id) {
  return !id.empty() && id.size() <= kMaxRequestIdBytes &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < '\x7f'; });
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string path_of(std::string_view target) {
  target = target.substr(0, target.find_first_of("?#"));
  std::string path;
  for (size_t i = 0; i < target.size(); ++i) {
    if (target[i] == '%' && i + 2 < target.size()) {
      const int high = hex_value(target[i + 1]);
      const int low = hex_value(target[i + 2]);
      if (high >= 0 && low >= 0) {
        path += static_cast<char>(high * 16 + low);
        i += 2;
        continue;
      }
    }
    path += target[i];
  }
  return path;
}

std::string_view view(boost::string_view text) { return {text.data(), text.size()}; }

}  // namespace

Session::Session(std::shared_ptr<IoContext> io,
                 Socket socket,
                 const HandlerContext& context,
                 std::function<void(Session*)> on_closed)
    : io_(std::move(io)),
      socket_(std::move(socket)),
      context_(context),
      on_closed_(std::move(on_closed)),
      read_timer_(socket_.get_executor()),
      ping_timer_(socket_.get_executor()),
      write_timer_(socket_.get_executor()) {}

void Session::start() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    ErrorCode ignored;
    self->socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    self->socket_.non_blocking(true, ignored);
    self->expire_read_after(Seconds(self->config().idle_timeout));
    self->read();
  });
}

void Session::close() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->shut(); });
}

void Session::close_when_idle() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    self->keep_alive_ = false;
    if (self->state_ != State::kHandling) self->shut();
  });
}

void Session::refuse(const Status& status) {
  asio::post(socket_.get_executor(), [self = shared_from_this(), status] {
    self->begin_exchange();
    self->keep_alive_ = false;
    self->reply(error_reply(status));
    self->read();
  });
}

api::Executor Session::executor() {
  return [self = shared_from_this()](std::function<void()> task) {
    asio::post(self->socket_.get_executor(), std::move(task));
  };
}

void Session::read() {
  if (read_pending_ || end_of_input_ || state_ == State::kClosed) return;
  if (state_ == State::kHandling && input_.size() >= kMaxPipelinedBytes) return;
  read_pending_ = true;
  chunk_.resize(header_seen_ ? kBodyReadBytes : kIdleReadBytes);
  socket_.async_read_some(asio::buffer(chunk_),
                          [self = shared_from_this()](const ErrorCode& error, size_t num_bytes) {
                            self->on_read(error, num_bytes);
                          });
}

void Session::on_read(const ErrorCode& error, size_t num_bytes) {
  read_pending_ = false;
  if (state_ == State::kClosed) return;
  if (error) return on_end_of_input();
  if (state_ != State::kLingering) {
    input_.commit(asio::buffer_copy(input_.prepare(num_bytes), asio::buffer(chunk_, num_bytes)));
  }
  if (state_ == State::kReading) parse();
  read();
}

void Session::on_end_of_input() {
  end_of_input_ = true;
  // A reply that is complete is still written: `printf ... | nc` ends its input early.
  if (state_ == State::kHandling && reply_complete_) return;
  shut();
}

void Session::parse() {
  while (state_ == State::kReading && input_.size() > 0) {
    if (!parser_) {
      parser_.emplace();
      parser_->eager(true);
      parser_->header_limit(static_cast<uint32_t>(config().max_header_bytes));
      parser_->body_limit(static_cast<uint64_t>(config().max_body_bytes));
      expire_read_after(Seconds(config().header_timeout));
    }
    ErrorCode error;
    const size_t used = parser_->put(input_.data(), error);
    input_.consume(used);
    if (error == beast_http::error::header_limit) {
      return refuse_request(
          431, "the header is larger than " + std::to_string(config().max_header_bytes) + " bytes");
    }
    if (error == beast_http::error::body_limit) {
      return refuse_request(413,
                            "the body is larger than " + std::to_string(config().max_body_bytes) +
                                " bytes (server option max-body-bytes)");
    }
    const bool needs_more = error == beast_http::error::need_more;
    if (error && !needs_more) {
      return refuse_request(400, "the request is not valid HTTP: " + error.message());
    }
    if (parser_->is_header_done() && !header_seen_) on_header();
    if (parser_->is_done()) {
      dispatch_request();
    } else if (needs_more && used == 0) {
      // Chunk headers have no limit of their own.
      if (input_.size() > static_cast<size_t>(config().max_header_bytes) + kBodyReadBytes) {
        return refuse_request(400, "the request has a chunk header that does not end");
      }
      return;
    }
  }
}

void Session::on_header() {
  header_seen_ = true;
  expire_read_after(Seconds(config().body_timeout));
  const auto expect = parser_->get()[beast_http::field::expect];
  if (!parser_->is_done() && boost::beast::iequals(expect, "100-continue")) {
    write("HTTP/1.1 100 Continue\r\n\r\n");
  }
}

void Session::begin_exchange() {
  state_ = State::kHandling;
  read_timer_.cancel();
  request_ = {};
  request_.request_id = random_id();
  route_ = "none";
  version_ = 11;
  head_only_ = false;
  keep_alive_ = true;
  reply_complete_ = false;
  stream_expected_ = false;
  stream_open_ = false;
  exchange_start_ = SteadyClock::now();
}

void Session::refuse_request(int status, const std::string& message) {
  begin_exchange();
  keep_alive_ = false;
  reply({status, api::error_body({status, "invalid_request_error", nullptr, 0}, message, "")});
}

void Session::dispatch_request() {
  begin_exchange();
  auto message = parser_->release();
  parser_.reset();
  header_seen_ = false;
  request_.method = std::string(message.method_string());
  head_only_ = request_.method == "HEAD";
  if (head_only_) request_.method = "GET";
  request_.path = path_of(view(message.target()));
  request_.authorization = std::string(message[beast_http::field::authorization]);
  if (const auto id = view(message["x-request-id"]); is_echoable(id)) request_.request_id = id;
  request_.body = std::move(message.body());
  version_ = message.version();
  keep_alive_ = message.keep_alive();
  http::dispatch(context_, shared_from_this());
}

void Session::record(int status) const {
  const std::chrono::duration<double> elapsed = SteadyClock::now() - exchange_start_;
  context_.metrics.record(route_, request_.method, status, elapsed.count(), request_.body.size());
  log::debug("http",
             "request answered",
             {{"id", request_.request_id},
              {"method", request_.method},
              {"path", request_.path},
              {"status", status},
              {"seconds", elapsed.count()}});
}

void Session::finish_exchange() {
  record(reply_status_);
  on_disconnect_ = nullptr;
  ping_timer_.cancel();
  ping_armed_ = false;
  if (!keep_alive_) return linger();
  state_ = State::kReading;
  request_ = {};
  for (std::string* buffer : {&in_flight_, &pending_}) {
    if (buffer->capacity() > kKeptBufferBytes) std::string().swap(*buffer);
  }
  if (input_.size() == 0) input_.shrink_to_fit();
  expire_read_after(Seconds(config().idle_timeout));
  parse();
  if (state_ == State::kReading && end_of_input_) return shut();
  read();
}

void Session::expire_read_after(Seconds timeout) {
  read_timer_.expires_after(timeout);
  read_timer_.async_wait([self = shared_from_this()](const ErrorCode& error) {
    if (!error && SteadyClock::now() >= self->read_timer_.expiry()) self->on_read_timeout();
  });
}

void Session::on_read_timeout() {
  if (state_ == State::kReading && parser_) {
    return refuse_request(408,
                          header_seen_ ? "the body took too long" : "the header took too long");
  }
  if (state_ == State::kReading || state_ == State::kLingering) shut();
}

// Lets the client read the reply although it may still be sending: closing with unread input would
// reset the connection.
void Session::linger() {
  state_ = State::kLingering;
  input_.consume(input_.size());
  ErrorCode ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  if (end_of_input_) return shut();
  expire_read_after(kLingerTime);
  read();
}

void Session::shut() {
  if (state_ == State::kClosed) return;
  const bool was_handling = state_ == State::kHandling;
  state_ = State::kClosed;
  ErrorCode ignored;
  socket_.close(ignored);
  read_timer_.cancel();
  write_timer_.cancel();
  ping_timer_.cancel();
  if (was_handling) record(reply_complete_ ? reply_status_ : kClientLeft);
  if (const auto callback = std::exchange(on_disconnect_, nullptr)) callback();
  on_closed_(this);
}

}  // namespace headwater::http
