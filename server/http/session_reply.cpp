// What a session sends: replies, streams of events, and how their bytes leave.
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/status.hpp>
#include <utility>

#include "engine/log.h"
#include "server/http/session.h"

namespace headwater::http {
namespace {

namespace asio = boost::asio;
namespace beast_http = boost::beast::http;
using SteadyClock = std::chrono::steady_clock;

std::string_view reason_of(int status) {
  if (status == kClientLeft) return "Client Closed Request";
  const auto reason = beast_http::obsolete_reason(static_cast<beast_http::status>(status));
  return {reason.data(), reason.size()};
}

}  // namespace

std::string Session::head_text(int status) const {
  std::string head = "HTTP/1.1 ";
  head += std::to_string(status);
  head += ' ';
  head += reason_of(status);
  head += "\r\nx-request-id: " + request_.request_id + "\r\n";
  if (!keep_alive_) {
    head += "Connection: close\r\n";
  } else if (version_ < 11) {
    head += "Connection: keep-alive\r\n";
  }
  if (const std::string& origin = config().cors_origin; !origin.empty()) {
    head += "Access-Control-Allow-Origin: " + origin +
            "\r\nAccess-Control-Allow-Methods: GET, POST, OPTIONS"
            "\r\nAccess-Control-Allow-Headers: authorization, content-type, x-request-id"
            "\r\nAccess-Control-Expose-Headers: x-request-id, retry-after\r\n";
  }
  return head;
}

void Session::reply(HttpReply reply) {
  if (state_ != State::kHandling || reply_complete_) return;
  if (context_.service.lifecycle().state() == ServerState::kDraining) keep_alive_ = false;
  std::string bytes = head_text(reply.status);
  for (const auto& [name, value] : reply.headers) bytes += name + ": " + value + "\r\n";
  if (!reply.content_type.empty()) bytes += "Content-Type: " + reply.content_type + "\r\n";
  if (reply.status != 204) {
    bytes += "Content-Length: " + std::to_string(reply.body.size()) + "\r\n";
  }
  bytes += "\r\n";
  if (!head_only_) bytes += reply.body;
  reply_status_ = reply.status;
  reply_complete_ = true;
  write(std::move(bytes));
}

void Session::expect_stream() {
  stream_expected_ = true;
  sse_ = SseWriter(version_ >= 11);
  if (!sse_.chunked()) keep_alive_ = false;
  ping_later();
}

void Session::open_stream() {
  if (context_.service.lifecycle().state() == ServerState::kDraining) keep_alive_ = false;
  stream_open_ = true;
  reply_status_ = 200;
  std::string head = head_text(200);
  head +=
      "Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
      "X-Accel-Buffering: no\r\n";
  if (sse_.chunked()) head += "Transfer-Encoding: chunked\r\n";
  write(head + "\r\n");
}

void Session::send_event(const std::string& data) {
  if (state_ != State::kHandling || reply_complete_) return;
  if (!stream_open_) open_stream();
  if (pending_.size() + data.size() > static_cast<size_t>(config().max_send_buffer_bytes)) {
    log::warn("http", "client reads too slowly", {{"id", request_.request_id}});
    return shut();
  }
  write(sse_.event(data));
  ping_later();
}

void Session::end_stream() {
  if (state_ != State::kHandling || reply_complete_) return;
  if (!stream_open_) open_stream();
  reply_complete_ = true;
  write(sse_.end());
}

void Session::ping_later() {
  ping_at_ = SteadyClock::now() + Seconds(config().sse_ping_interval);
  if (!ping_armed_) arm_ping();
}

// Every event moves the time; the timer sees that when it fires.
void Session::arm_ping() {
  ping_armed_ = true;
  ping_timer_.expires_at(ping_at_);
  ping_timer_.async_wait([self = shared_from_this()](const ErrorCode& error) {
    if (error || self->state_ != State::kHandling || !self->stream_expected_ ||
        self->reply_complete_) {
      return;
    }
    if (SteadyClock::now() < self->ping_at_) return self->arm_ping();
    self->ping_armed_ = false;
    if (!self->stream_open_) self->open_stream();
    self->write(self->sse_.ping());
    self->ping_later();
  });
}

void Session::on_disconnect(std::function<void()> callback) {
  if (state_ == State::kHandling && !reply_complete_) {
    on_disconnect_ = std::move(callback);
  } else if (state_ == State::kClosed) {
    callback();
  }
}

void Session::write(std::string bytes) {
  if (state_ == State::kClosed) return;
  pending_ += bytes;
  if (!writing_) flush();
}

void Session::flush() {
  if (num_written_ == in_flight_.size()) {
    in_flight_.clear();
    in_flight_.swap(pending_);
    num_written_ = 0;
  }
  writing_ = !in_flight_.empty();
  if (!writing_) return on_all_written();
  if (stream_open_ && !reply_complete_ && write_now()) return;
  write_timer_.expires_after(Seconds(config().write_timeout));
  write_timer_.async_wait([self = shared_from_this()](const ErrorCode& error) {
    if (!error && self->writing_ && SteadyClock::now() >= self->write_timer_.expiry()) {
      log::warn("http", "client does not read", {{"id", self->request_.request_id}});
      self->shut();
    }
  });
  socket_.async_write_some(
      asio::buffer(in_flight_.data() + num_written_, in_flight_.size() - num_written_),
      [self = shared_from_this()](const ErrorCode& error, size_t num_bytes) {
        self->on_written(error, num_bytes);
      });
}

// An event nearly always fits the socket's buffer: no completion, no timer. True: all went out.
bool Session::write_now() {
  ErrorCode error;
  num_written_ += socket_.write_some(
      asio::buffer(in_flight_.data() + num_written_, in_flight_.size() - num_written_), error);
  if (error || num_written_ < in_flight_.size()) return false;  // an error comes again
  in_flight_.clear();
  num_written_ = 0;
  writing_ = false;
  return true;
}

void Session::on_written(const ErrorCode& error, size_t num_bytes) {
  if (state_ == State::kClosed) return;
  if (error) return shut();
  num_written_ += num_bytes;
  flush();
}

void Session::on_all_written() {
  write_timer_.cancel();
  if (state_ == State::kHandling && reply_complete_) finish_exchange();
}

}  // namespace headwater::http
