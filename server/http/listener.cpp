#include "server/http/listener.h"

#include <sys/resource.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/log.h"
#include "server/http/session.h"

namespace headwater::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

// Every connection is a descriptor; the soft limit is often 1,024, the hard one larger.
void raise_descriptor_limit(int32_t max_connections) {
  constexpr rlim_t kOtherDescriptors = 64;  // model files, listeners, epoll, gRPC, standard streams
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t needed = static_cast<rlim_t>(max_connections) + kOtherDescriptors;
  if (limit.rlim_max < needed) {
    log::warn("http",
              "fewer descriptors than connections",
              {{"hard_limit", limit.rlim_max},
               {"max_connections", max_connections},
               {"advice", "raise ulimit -Hn or LimitNOFILE, or lower --max-connections"}});
  }
}

tcp::endpoint resolve(IoContext& io, const ServerConfig& config) {
  ErrorCode error;
  tcp::resolver resolver(io);
  const auto found =
      resolver.resolve(config.host, std::to_string(config.port), tcp::resolver::passive, error);
  if (error || found.empty()) {
    throw ConfigError("host '" + config.host + "' is no address to listen on: " + error.message());
  }
  return found.begin()->endpoint();
}

}  // namespace

struct Listener::Impl : std::enable_shared_from_this<Listener::Impl> {
  explicit Impl(const HandlerContext& handler_context)
      : context(handler_context),
        config(handler_context.service.config()),
        io(std::make_shared<IoContext>()),
        work(asio::make_work_guard(*io)),
        acceptor(asio::make_strand(*io)),
        retry_timer(acceptor.get_executor()) {}

  void bind() {
    const tcp::endpoint endpoint = resolve(*io, config);
    ErrorCode error;
    acceptor.open(endpoint.protocol(), error);
    if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      throw ConfigError("cannot listen on " + config.host + ":" + std::to_string(config.port) +
                        ": " + error.message() + "; change --host or --port");
    }
    port = acceptor.local_endpoint().port();
  }

  void run() {
    accept();
    for (int32_t i = 0; i < config.io_threads; ++i) {
      threads.emplace_back([this] { io->run(); });
    }
  }

  void accept() {
    acceptor.async_accept(
        asio::make_strand(*io), [self = shared_from_this()](const ErrorCode& error, Socket socket) {
          if (error == asio::error::operation_aborted || !self->acceptor.is_open()) return;
          if (error) {
            log::warn("http", "accept failed", {{"error", error.message()}});
            return self->accept_later();
          }
          self->admit(std::move(socket));
          self->accept();
        });
  }

  // Out of descriptors, most likely: some will be closed.
  void accept_later() {
    retry_timer.expires_after(std::chrono::milliseconds(100));
    retry_timer.async_wait([self = shared_from_this()](const ErrorCode& error) {
      if (!error) self->accept();
    });
  }

  void admit(Socket socket) {
    const auto session = std::make_shared<Session>(
        io, std::move(socket), context, [weak = weak_from_this()](Session* closed) {
          if (const auto self = weak.lock()) self->forget(closed);
        });
    bool full = false;
    {
      const std::lock_guard lock(mutex);
      full = sessions.size() >= static_cast<size_t>(config.max_connections);
      sessions.emplace(session.get(), session);
    }
    if (full) {
      session->refuse({StatusCode::kUnavailable, "too many connections; try again shortly", ""});
    } else {
      session->start();
    }
  }

  void forget(Session* session) {
    const std::lock_guard lock(mutex);
    sessions.erase(session);
    if (sessions.empty()) all_closed.notify_all();
  }

  std::vector<std::shared_ptr<Session>> open_sessions() {
    const std::lock_guard lock(mutex);
    std::vector<std::shared_ptr<Session>> open;
    for (const auto& [key, weak] : sessions) {
      if (auto session = weak.lock()) open.push_back(std::move(session));
    }
    return open;
  }

  void stop(std::chrono::milliseconds grace) {
    if (threads.empty()) return;
    asio::post(acceptor.get_executor(), [self = shared_from_this()] {
      ErrorCode ignored;
      self->acceptor.close(ignored);
      self->retry_timer.cancel();
    });
    for (const auto& session : open_sessions()) session->close_when_idle();
    {
      std::unique_lock lock(mutex);
      all_closed.wait_for(lock, grace, [this] { return sessions.empty(); });
    }
    for (const auto& session : open_sessions()) session->close();
    work.reset();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }

  const HandlerContext context;
  const ServerConfig config;
  std::shared_ptr<IoContext> io;
  asio::executor_work_guard<IoContext::executor_type> work;
  tcp::acceptor acceptor;
  asio::steady_timer retry_timer;
  uint16_t port = 0;
  std::vector<std::thread> threads;

  std::mutex mutex;
  std::condition_variable all_closed;
  std::unordered_map<Session*, std::weak_ptr<Session>> sessions;
};

Listener::Listener(const HandlerContext& context) : impl_(std::make_shared<Impl>(context)) {
  raise_descriptor_limit(impl_->config.max_connections);
  impl_->bind();
  impl_->run();
}

Listener::~Listener() { stop(std::chrono::milliseconds(0)); }

uint16_t Listener::port() const { return impl_->port; }

void Listener::stop(std::chrono::milliseconds grace) { impl_->stop(grace); }

}  // namespace headwater::http
