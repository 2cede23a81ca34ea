// Session: one connection. Reads requests, hands each to the routes, writes replies in order.
// Everything runs on the connection's strand; include it in listener.cpp and session.cpp only
// (Beast is slow to compile).
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/http/exchange.h"
#include "server/http/routes.h"
#include "server/http/sse_writer.h"

namespace headwater::http {

using IoContext = boost::asio::io_context;
using Socket = boost::asio::ip::tcp::socket;
using ErrorCode = boost::system::error_code;

constexpr int kClientLeft = 499;  // a status that is only recorded

// reading -> handling -> reading ... -> lingering -> closed.
//
// One read is always pending (but for a client that pipelines too much), so that a client that
// leaves is noticed at once. The end of its stream while a generation runs counts as leaving;
// otherwise what is in the buffer is still answered.
class Session final : public Exchange, public std::enable_shared_from_this<Session> {
 public:
  // io: kept alive, because sinks of the engine may hold the session longer than the listener.
  // socket: on a strand of its own. on_closed: called once, on the strand.
  Session(std::shared_ptr<IoContext> io,
          Socket socket,
          const HandlerContext& context,
          std::function<void(Session*)> on_closed);

  // Any thread.
  void start();
  void close();
  // As close(), but a reply under way is finished first.
  void close_when_idle();
  // Answers at once and closes: the server has no room.
  void refuse(const Status& status);

  const HttpRequest& request() const override { return request_; }
  api::Executor executor() override;
  void set_route(const std::string& pattern) override { route_ = pattern; }
  void reply(HttpReply reply) override;
  void expect_stream() override;
  bool stream_open() const override { return stream_open_; }
  void send_event(const std::string& data) override;
  void end_stream() override;
  void on_disconnect(std::function<void()> callback) override;

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using Seconds = std::chrono::seconds;
  enum class State { kReading, kHandling, kLingering, kClosed };

  void read();
  void on_read(const ErrorCode& error, size_t num_bytes);
  void on_end_of_input();
  void parse();
  void on_header();
  void refuse_request(int status, const std::string& message);
  void dispatch_request();

  void begin_exchange();
  void finish_exchange();
  void record(int status) const;
  std::string head_text(int status) const;
  void open_stream();
  void ping_later();
  void arm_ping();

  void write(std::string bytes);
  void flush();
  bool write_now();
  void on_written(const ErrorCode& error, size_t num_bytes);
  void on_all_written();

  void expire_read_after(Seconds timeout);
  void on_read_timeout();
  void linger();
  void shut();  // closes at once

  const ServerConfig& config() const { return context_.service.config(); }

  std::shared_ptr<IoContext> io_;  // first member: destroyed last
  Socket socket_;
  const HandlerContext context_;
  std::function<void(Session*)> on_closed_;
  State state_ = State::kReading;

  // input
  std::vector<char> chunk_;          // what the pending read fills
  boost::beast::flat_buffer input_;  // received and not parsed
  std::optional<Parser> parser_;
  bool header_seen_ = false;
  bool read_pending_ = false;
  bool end_of_input_ = false;
  boost::asio::steady_timer read_timer_;

  // the exchange
  HttpRequest request_;
  std::string route_;
  unsigned version_ = 11;
  bool head_only_ = false;  // HEAD
  bool keep_alive_ = true;
  bool reply_complete_ = false;  // all of it is in the output
  int reply_status_ = 0;
  std::chrono::steady_clock::time_point exchange_start_;
  std::function<void()> on_disconnect_;
  bool stream_expected_ = false;
  bool stream_open_ = false;
  SseWriter sse_{true};
  boost::asio::steady_timer ping_timer_;
  std::chrono::steady_clock::time_point ping_at_;
  bool ping_armed_ = false;

  // output: in_flight_ is being written, pending_ waits
  std::string in_flight_, pending_;
  size_t num_written_ = 0;  // of in_flight_
  bool writing_ = false;
  boost::asio::steady_timer write_timer_;
};

}  // namespace headwater::http
