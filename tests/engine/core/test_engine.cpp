// The engine behind its door: what a request may ask of the attention policy.
#include <catch2/catch.hpp>
#include <condition_variable>
#include <mutex>

#include "engine/engine.h"
#include "engine/log.h"
#include "tests/support/engine_harness.h"
#include "tests/support/temp_file.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test
using Catch::Matchers::Contains;

namespace {

constexpr const char* kTable = R"({
  "format": "headwater.head_table/1", "method": "razor",
  "model": {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32},
  "heads": [["full", "compressed"], ["compressed", "compressed"]]})";

class WaitingSink final : public TokenSink {
 public:
  bool on_event(TokenEvent event) override {
    const std::lock_guard lock(mutex_);
    if (event.finish == FinishReason::kNone) return true;
    usage_ = event.usage;
    done_.notify_all();
    return true;
  }
  Usage wait() {
    std::unique_lock lock(mutex_);
    REQUIRE(done_.wait_for(lock, std::chrono::seconds(60), [&] { return usage_.has_value(); }));
    return *usage_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  std::optional<Usage> usage_;
};

class Server {
 public:
  Server(const TestDevice& device, EngineConfig config) {
    log::set_level("warn");
    config.model = folder_.path().string() + "/tiny.gguf";
    write_tiny_gguf(config.model);
    if (config.attention == "razor") config.head_table = folder_.add("t.json", kTable);
    config.kv_cache_dtype = "f32";
    config.device = device.name;
    config.deterministic = device.exact;
    config.threads = 1;
    config.window_recent = 64;
    config.window_block = 32;
    config.window_growth = 0;
    if (config.attention == "dense") config.window_recent = -1;
    config.kv_cache_bytes = 2 << 20;  // 512 pages of one head: 2,048 dense tokens
    engine_ = make_engine(config, {});
  }
  Engine& engine() { return *engine_; }

  Status ask(const AttentionRequest& attention, int32_t prompt_tokens = 300) {
    Request request = make_request(std::vector<int32_t>(static_cast<size_t>(prompt_tokens), 7), 8);
    request.id = engine_->next_request_id();
    request.attention = attention;
    sink_ = std::make_shared<WaitingSink>();
    request.sink = sink_;
    return engine_->submit(std::move(request));
  }
  // Of a request that is taken.
  Usage usage(const AttentionRequest& attention) {
    REQUIRE(ask(attention).ok());
    return sink_->wait();
  }

 private:
  TempFolder folder_;
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<WaitingSink> sink_;
};

EngineConfig config_for(const char* attention) {
  EngineConfig config;
  config.attention = attention;
  return config;
}

}  // namespace

TEST_CASE("Engine: the attention field narrows what the server runs", "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  Server server(*device, config_for("razor"));
  const ModelInfo& info = server.engine().model_info();
  REQUIRE(info.attention == "razor");
  REQUIRE_THAT(info.head_table, Contains("t.json (razor)"));
  REQUIRE(info.num_kv_heads == 4);
  REQUIRE(info.num_full_heads == 1);
  REQUIRE(info.kv_sequence_bytes < info.kv_sequence_bytes_dense);

  const Usage own = server.usage({});
  const Usage named = server.usage({.policy = "razor", .kv_budget = {}, .selection_budget = {}});
  const Usage narrow = server.usage({.policy = "", .kv_budget = 52, .selection_budget = {}});
  const Usage dense = server.usage({.policy = "dense", .kv_budget = {}, .selection_budget = {}});
  REQUIRE(named.kv_bytes == own.kv_bytes);
  REQUIRE(narrow.kv_bytes < own.kv_bytes);
  REQUIRE(own.kv_bytes < own.kv_bytes_dense);
  REQUIRE(dense.kv_bytes >= dense.kv_bytes_dense);  // pages, and records that it does not use

  const auto refusal = [&](const AttentionRequest& asked, const char* param) {
    const Status status = server.ask(asked);
    REQUIRE(status.code == StatusCode::kInvalidArgument);
    REQUIRE(status.param == param);
    return status.message;
  };
  REQUIRE_THAT(
      refusal({.policy = "raze", .kv_budget = {}, .selection_budget = {}}, "attention.policy"),
      Contains("dense, window, razor, duo, moa, s2"));
  REQUIRE_THAT(
      refusal({.policy = "duo", .kv_budget = {}, .selection_budget = {}}, "attention.policy"),
      Contains("is not what this server runs: \"razor\" or \"dense\""));
  // Sinks fill a page of 16, blocks are of 32.
  REQUIRE_THAT(
      refusal({.policy = "", .kv_budget = 48, .selection_budget = {}}, "attention.kv_budget"),
      Contains("at least 49 tokens"));
  REQUIRE_THAT(
      refusal({.policy = "dense", .kv_budget = 100, .selection_budget = {}}, "attention.kv_budget"),
      Contains("dense has none"));
  REQUIRE_THAT(
      refusal({.policy = "", .kv_budget = {}, .selection_budget = 9}, "attention.selection_budget"),
      Contains("selects nothing"));
}

TEST_CASE("Engine: the operator bounds what requests may ask", "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  EngineConfig config = config_for("razor");
  config.allow_dense_requests = false;
  config.max_kv_budget = 60;
  Server server(*device, config);
  REQUIRE_THAT(server.ask({.policy = "dense", .kv_budget = {}, .selection_budget = {}}).message,
               Contains("allow-dense-requests"));
  REQUIRE_THAT(server.ask({.policy = "duo", .kv_budget = {}, .selection_budget = {}}).message,
               !Contains("dense\""));
  REQUIRE_THAT(server.ask({.policy = "", .kv_budget = 61, .selection_budget = {}}).message,
               Contains("at most 60 tokens"));
  REQUIRE(server.ask({.policy = "", .kv_budget = 60, .selection_budget = {}}).ok());
}

TEST_CASE("Engine: a streaming policy promises longer contexts than a dense request gets",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  EngineConfig config = config_for("razor");
  config.prefill_mode = "streaming";
  Server server(*device, config);
  REQUIRE(server.engine().model_info().max_model_len > 3000);
  REQUIRE(server.ask({}, 2500).ok());
  const Status dense =
      server.ask({.policy = "dense", .kv_budget = {}, .selection_budget = {}}, 2500);
  REQUIRE(dense.code == StatusCode::kContextLength);
  REQUIRE_THAT(dense.message, Contains("2500"));

  Server plain(*device, config_for("dense"));
  REQUIRE(plain.engine().model_info().num_full_heads == 4);
  REQUIRE(plain.ask({.policy = "dense", .kv_budget = {}, .selection_budget = {}}).ok());
  REQUIRE_THAT(plain.ask({.policy = "", .kv_budget = 100, .selection_budget = {}}).message,
               Contains("dense has none"));
}
