// StreamCall: one server-streaming RPC as a gRPC callback reactor over one api::Generation. No
// thread waits for it. Everything but the On... entry points runs on the call's strand.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "headwater/v1/inference.pb.h"
#include "server/api/service.h"

namespace headwater::grpc_api {

class StreamCall;

// The calls under way by request id, for Abort. Thread-safe.
class ActiveCalls final {
 public:
  // False if the id is taken.
  bool add(const std::string& id, const std::shared_ptr<StreamCall>& call);
  void remove(const std::string& id);
  std::shared_ptr<StreamCall> find(const std::string& id) const;  // null: none

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::weak_ptr<StreamCall>> calls_;
};

class StreamCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                         public std::enable_shared_from_this<StreamCall> {
 public:
  // Called once on the strand after the checks that need no tokenizer.
  using MakeRequest = std::function<Result<api::GenerationRequest>()>;

  struct Shared {  // not owned; outlives every call
    const api::Service& service;
    ActiveCalls& active;
    boost::asio::thread_pool& pool;
  };

  // Returns the reactor that gRPC drives and that lives until the call is over.
  static StreamCall* start(grpc::CallbackServerContext& context,
                           const Shared& shared,
                           std::string request_id,
                           std::string model,
                           MakeRequest make_request);

  // Ends the call with status ABORTED. Any thread.
  void abort();

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  StreamCall(grpc::CallbackServerContext& context, const Shared& shared, std::string request_id);
  void post(std::function<void(StreamCall&)> task);
  Status begin(const std::string& model, const MakeRequest& make_request);
  void on_delta(const api::Delta& delta);
  void on_done(const Status& status, const api::GenerationUsage& usage);
  void send(v1::GenerateResponse message);
  void write_next();
  void end(grpc::Status status);      // after what is queued
  void end_now(grpc::Status status);  // drops what is queued and the generation

  grpc::CallbackServerContext& context_;  // gRPC's, valid until OnDone
  const Shared shared_;
  const std::string request_id_;
  boost::asio::strand<boost::asio::thread_pool::executor_type> strand_;
  std::shared_ptr<StreamCall> self_;  // gRPC's share: from start() to OnDone()
  std::shared_ptr<api::Generation> generation_;
  std::deque<v1::GenerateResponse> queue_;  // front is being written if writing_
  size_t queued_bytes_ = 0;
  bool is_active_ = false;  // in shared_.active
  bool writing_ = false;
  bool ending_ = false;
  bool finished_ = false;  // Finish() was called; the context is not ours any more
  grpc::Status final_status_;
};

}  // namespace headwater::grpc_api
