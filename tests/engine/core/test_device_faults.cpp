// A device that breaks: whatever it was doing, everybody gets one clear answer.
#include <catch2/catch.hpp>
#include <condition_variable>
#include <mutex>

#include "engine/engine.h"
#include "engine/log.h"
#include "tests/support/engine_harness.h"
#include "tests/support/faulty_ops.h"
#include "tests/support/skip.h"
#include "tests/support/temp_file.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test
using Catch::Matchers::Contains;

namespace {

class CountingSink final : public TokenSink {
 public:
  explicit CountingSink(int num_choices) : terminals_(static_cast<size_t>(num_choices)) {}

  bool on_event(TokenEvent event) override {
    const std::lock_guard lock(mutex_);
    ++num_events_;
    if (event.finish != FinishReason::kNone) {
      all_failed_ = all_failed_ && event.finish == FinishReason::kError;
      error_ = event.error;
      ++terminals_[static_cast<size_t>(event.choice)];
    }
    changed_.notify_all();
    return true;
  }
  void wait_for_tokens() {
    wait([&] { return num_events_ > 0; });
  }
  void require_failed(const std::string& words) {
    const std::vector<int> once(terminals_.size(), 1);
    wait([&] { return terminals_ == once; });
    const std::lock_guard lock(mutex_);
    REQUIRE(all_failed_);
    REQUIRE(error_.code == StatusCode::kInternal);
    REQUIRE_THAT(error_.message, Contains("the engine failed") && Contains(words));
  }

 private:
  void wait(const std::function<bool()>& done) {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(60), done));
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int num_events_ = 0;
  std::vector<int> terminals_;  // of each choice
  bool all_failed_ = true;
  Status error_;
};

class Server {
 public:
  Server(const TestDevice& device, std::shared_ptr<Fuse> fuse) {
    log::set_level("off");
    EngineConfig config;
    config.model = folder_.path().string() + "/tiny.gguf";
    write_tiny_gguf(config.model);
    config.max_num_seqs = 3;
    config.threads = 1;
    config.kv_cache_bytes = 8 << 20;
    engine_ = make_engine(config, {}, [&](const EngineConfig&, ThreadPool& pool) {
      return std::make_unique<FaultyOps>(testing::make_ops(device, pool), fuse);
    });
  }
  Engine& engine() { return *engine_; }

  std::shared_ptr<CountingSink> ask(int num_choices) {
    auto sink = std::make_shared<CountingSink>(num_choices);
    Request request = make_request(std::vector<int32_t>(40, 7), 2000);
    request.id = engine_->next_request_id();
    request.n = num_choices;
    request.sink = sink;
    REQUIRE(engine_->submit(std::move(request)).ok());
    return sink;
  }

 private:
  TempFolder folder_;
  std::unique_ptr<Engine> engine_;
};

void check_step(const TestDevice& device, const Fault& fault, int64_t calls) {
  CAPTURE(device, fault.words, calls);
  const auto fuse = std::make_shared<Fuse>();
  fuse->fault = fault;
  Server server(device, fuse);
  // Of three seats one is free when the forks of the second request want two.
  const auto streams = server.ask(1), forks = server.ask(3);
  streams->wait_for_tokens();
  const auto waits = server.ask(1);
  fuse->calls_left = calls;
  for (const auto& sink : {streams, forks, waits}) sink->require_failed(fault.words);
  REQUIRE_FALSE(server.engine().healthy());
  Request late = make_request({7}, 1);
  late.sink = waits;
  REQUIRE(server.engine().submit(std::move(late)).code == StatusCode::kInternal);
  REQUIRE(server.engine().drain(std::chrono::seconds(10)));
}

}  // namespace

TEST_CASE("Device faults: whatever call of loading breaks, the error says why",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const auto fuse = std::make_shared<Fuse>();
  fuse->fault = out_of_memory(device->name);
  int64_t calls = 0;
  for (bool loaded = false; !loaded; calls += device->name == "cuda" ? 5 : 1) {
    fuse->calls_left = calls;
    try {
      const Server server(*device, fuse);
      loaded = true;
    } catch (const CudaError& error) {
      REQUIRE_THAT(error.what(), Contains(fuse->fault.words));
    }
  }
  REQUIRE(calls > 20);
}

TEST_CASE("Device faults: whatever call of a step breaks, every request ends with the error once",
          "[engine][unit][device]") {
  const auto device = each_device();
  if (!device) return;
  const int64_t calls = GENERATE(0, 1, 2, 3, 10, 25, 40, 100);
  check_step(*device, out_of_memory(device->name), calls);
}

// Last: nothing of this process reaches the GPU after it.
TEST_CASE("Device faults: a kernel that reads what is not there", "[engine][cuda]") {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty()) return skip(obstacle);
  check_step({"cuda"}, killed_context(), 30);
}
