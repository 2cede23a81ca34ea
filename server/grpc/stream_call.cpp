#include "server/grpc/stream_call.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <chrono>
#include <optional>
#include <utility>

#include "server/api/error_map.h"
#include "server/grpc/convert.h"

namespace headwater::grpc_api {
namespace {

// The earlier of the client's deadline and the server's bound.
std::optional<Clock::time_point> deadline_of(const grpc::CallbackServerContext& context,
                                             const ServerConfig& config) {
  using std::chrono::system_clock;
  std::optional<Clock::time_point> deadline;
  if (config.request_timeout > 0) {
    deadline = Clock::now() + std::chrono::seconds(config.request_timeout);
  }
  if (context.deadline() != system_clock::time_point::max()) {
    const auto left =
        std::chrono::duration_cast<Clock::duration>(context.deadline() - system_clock::now());
    const auto asked = Clock::now() + left;
    if (!deadline || asked < *deadline) deadline = asked;
  }
  return deadline;
}

}  // namespace

bool ActiveCalls::add(const std::string& id, const std::shared_ptr<StreamCall>& call) {
  const std::lock_guard lock(mutex_);
  return calls_.emplace(id, call).second;
}

void ActiveCalls::remove(const std::string& id) {
  const std::lock_guard lock(mutex_);
  calls_.erase(id);
}

std::shared_ptr<StreamCall> ActiveCalls::find(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(id);
  return found == calls_.end() ? nullptr : found->second.lock();
}

StreamCall::StreamCall(grpc::CallbackServerContext& context,
                       const Shared& shared,
                       std::string request_id)
    : context_(context),
      shared_(shared),
      request_id_(std::move(request_id)),
      strand_(boost::asio::make_strand(shared.pool)) {}

StreamCall* StreamCall::start(grpc::CallbackServerContext& context,
                              const Shared& shared,
                              std::string request_id,
                              std::string model,
                              MakeRequest make_request) {
  std::shared_ptr<StreamCall> call(new StreamCall(context, shared, std::move(request_id)));
  call->self_ = call;
  call->post([model = std::move(model), make = std::move(make_request)](StreamCall& c) {
    if (c.finished_) return;
    const Status status = c.begin(model, make);
    if (status.ok()) return;
    if (const int seconds = api::map_error(status).retry_after_s; seconds > 0) {
      c.context_.AddTrailingMetadata("retry-after", std::to_string(seconds));
    }
    c.end_now(to_grpc(status));
  });
  return call.get();
}

Status StreamCall::begin(const std::string& model, const MakeRequest& make_request) {
  const api::Service& service = shared_.service;
  if (Status status = service.can_accept(); !status.ok()) return status;
  if (Status status = service.check_model(model); !status.ok()) return status;
  is_active_ = shared_.active.add(request_id_, self_);
  if (!is_active_) {
    return invalid_argument("request_id \"" + request_id_ + "\" is in use by a running request",
                            "request_id");
  }
  Result<api::GenerationRequest> request = make_request();
  if (!request.ok()) return request.status();
  request.value().label = request_id_;
  request.value().deadline = deadline_of(context_, service.config());
  const auto self = shared_from_this();
  auto generation =
      service.submit(std::move(request).value(),
                     [strand = strand_](std::function<void()> task) {
                       boost::asio::post(strand, std::move(task));
                     },
                     {[self](const api::Delta& delta) { self->on_delta(delta); },
                      [self](const Status& status, const api::GenerationUsage& usage) {
                        self->on_done(status, usage);
                      }});
  if (!generation.ok()) return generation.status();
  generation_ = std::move(generation).value();
  return Status::Ok();
}

void StreamCall::post(std::function<void(StreamCall&)> task) {
  boost::asio::post(strand_, [self = shared_from_this(), task = std::move(task)] { task(*self); });
}

void StreamCall::on_delta(const api::Delta& delta) {
  v1::GenerateResponse message;
  message.set_request_id(request_id_);
  to_piece(delta, shared_.service.engine()->tokenizer(), message.mutable_piece());
  send(std::move(message));
}

void StreamCall::on_done(const Status& status, const api::GenerationUsage& usage) {
  generation_.reset();
  if (status.ok()) {
    v1::GenerateResponse message;
    message.set_request_id(request_id_);
    to_usage(usage, message.mutable_usage());
    send(std::move(message));
  }
  end(to_grpc(status));
}

void StreamCall::send(v1::GenerateResponse message) {
  if (ending_) return;
  queued_bytes_ += message.ByteSizeLong();
  if (queued_bytes_ > static_cast<size_t>(shared_.service.config().max_send_buffer_bytes)) {
    end_now({grpc::StatusCode::RESOURCE_EXHAUSTED,
             "the client reads more slowly than the model writes: " +
                 std::to_string(queued_bytes_) + " bytes wait (max-send-buffer-bytes)"});
    return;
  }
  queue_.push_back(std::move(message));
  write_next();
}

void StreamCall::write_next() {
  if (writing_ || finished_) return;
  if (!queue_.empty()) {
    writing_ = true;
    StartWrite(&queue_.front());
  } else if (ending_) {
    finished_ = true;
    Finish(final_status_);
  }
}

void StreamCall::end(grpc::Status status) {
  if (ending_) return;
  ending_ = true;
  final_status_ = std::move(status);
  write_next();
}

void StreamCall::end_now(grpc::Status status) {
  if (finished_) return;
  if (generation_) generation_->cancel();
  generation_.reset();
  ending_ = true;
  final_status_ = std::move(status);
  // The message under way belongs to gRPC until OnWriteDone.
  queue_.resize(writing_ ? 1 : 0);
  write_next();
}

void StreamCall::abort() {
  post([](StreamCall& c) {
    c.end_now({grpc::StatusCode::ABORTED, "request " + c.request_id_ + " was aborted"});
  });
}

void StreamCall::OnWriteDone(bool ok) {
  post([ok](StreamCall& c) {
    c.writing_ = false;
    c.queued_bytes_ -= std::min(c.queued_bytes_, c.queue_.front().ByteSizeLong());
    c.queue_.pop_front();
    if (ok) {
      c.write_next();
    } else {
      c.end_now({grpc::StatusCode::CANCELLED, "the client left"});
    }
  });
}

void StreamCall::OnCancel() {
  post([](StreamCall& c) { c.end_now({grpc::StatusCode::CANCELLED, "the client left"}); });
}

void StreamCall::OnDone() {
  if (is_active_) shared_.active.remove(request_id_);
  self_.reset();
}

}  // namespace headwater::grpc_api
