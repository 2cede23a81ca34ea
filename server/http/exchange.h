// Exchange: one request and its reply, as handlers see them. Session is the real one; tests drive
// the routes with one that records. All calls on the exchange's executor.
#pragma once

#include <functional>
#include <string>

#include "server/api/submit.h"
#include "server/http/message.h"

namespace headwater::http {

class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual const HttpRequest& request() const = 0;
  // Runs tasks one at a time in order; holds the exchange.
  virtual api::Executor executor() = 0;
  // The route's pattern, for metrics and logs.
  virtual void set_route(const std::string& pattern) = 0;

  // The whole reply; ends the exchange. Not once the stream is open.
  virtual void reply(HttpReply reply) = 0;

  // The reply will be a stream of server-sent events. Its header goes out with the first event, or
  // with a ping after a long silence; until then reply() is still possible.
  virtual void expect_stream() = 0;
  virtual bool stream_open() const = 0;
  virtual void send_event(const std::string& data) = 0;
  virtual void end_stream() = 0;  // ends the exchange

  // Called at most once, when the client is gone before the exchange ended; what is sent after
  // that is dropped.
  virtual void on_disconnect(std::function<void()> callback) = 0;
};

}  // namespace headwater::http
