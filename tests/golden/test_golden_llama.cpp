// How far the engine is from llama.cpp on the same weights expanded to F32, teacher-forced over the
// texts of tests/data/golden (see make_llama_cpp_goldens.py), through the public facade: chunked
// prefill, paged KV and the sampler's logprobs are all in the path.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/engine.h"
#include "kernels/ops.h"
#include "tests/support/skip.h"
#include "tests/support/test_data.h"

using namespace headwater;

namespace {

constexpr size_t kSlice = 160;  // tokens of a text in a default run on RefOps
constexpr size_t kWhole = 1 << 20;

struct Peer {  // llama.cpp's own quantised path against its exact one
  double top1_equal, mean_abs_dlogp, perplexity_ratio;
};

struct Golden {
  std::string name;
  std::vector<int32_t> ids;
  std::vector<int32_t> top1;  // [ids.size() - 1]
  std::vector<double> logp;   // of the next token, likewise
  Peer peer;
};

std::vector<Golden> read_goldens(const std::string& file) {
  std::ifstream in(std::string(HW_SOURCE_DIR) + "/tests/data/golden/" + file);
  const auto json = nlohmann::json::parse(in);
  std::vector<Golden> goldens;
  for (const auto& text : json.at("texts")) {
    const auto& peer = text.at("peer");
    goldens.push_back(
        {text.at("name"),
         text.at("ids"),
         text.at("top1"),
         text.at("logp"),
         {peer.at("top1_equal"), peer.at("mean_abs_dlogp"), peer.at("perplexity_ratio")}});
  }
  REQUIRE(!goldens.empty());
  for (const Golden& golden : goldens) {
    REQUIRE(golden.ids.size() > kSlice);
    REQUIRE(golden.top1.size() == golden.ids.size() - 1);
    REQUIRE(golden.logp.size() == golden.ids.size() - 1);
  }
  return goldens;
}

// Waits on the test's thread for the one choice to end.
class Collector final : public TokenSink {
 public:
  bool on_event(TokenEvent event) override {
    const std::lock_guard lock(mutex_);
    std::move(
        event.prompt_logprobs.begin(), event.prompt_logprobs.end(), std::back_inserter(rows_));
    if (event.finish != FinishReason::kNone) {
      error_ = event.error;
      done_ = true;
      ended_.notify_one();
    }
    return true;
  }
  std::vector<TokenLogprobs> wait() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return done_; });
    INFO(error_.message);
    REQUIRE(error_.ok());
    return std::move(rows_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false;
  Status error_;
  std::vector<TokenLogprobs> rows_;
};

std::unique_ptr<Engine> engine_for(const std::string& model, const std::string& device) {
  EngineConfig config;
  config.model = model;
  config.device = device;
  config.max_model_len = 2048;
  config.max_num_seqs = 1;
  return make_engine(config, [](const std::string&, int64_t, int64_t) {});
}

// Logprobs of every token but the first, given those before it.
std::vector<TokenLogprobs> teacher_forced(Engine& engine, std::vector<int32_t> ids, int32_t k) {
  auto sink = std::make_shared<Collector>();
  Request request;
  request.id = engine.next_request_id();
  request.prompt = std::move(ids);
  request.sampling.max_tokens = 1;
  request.sampling.prompt_logprobs = k;
  request.sink = sink;
  const size_t expected = request.prompt.size() - 1;
  const Status status = engine.submit(std::move(request));
  INFO(status.message);
  REQUIRE(status.ok());
  auto rows = sink->wait();
  REQUIRE(rows.size() == expected);
  return rows;
}

struct Distance {
  double top1_equal = 0, mean_abs_dlogp = 0, perplexity_ratio = 0;
  double perplexity_std_error = 0;  // of the ratio, by the spread of the tokens' differences
};

Distance distance(Engine& engine, const Golden& golden, size_t num_tokens) {
  num_tokens = std::min(num_tokens, golden.ids.size());
  const auto rows = teacher_forced(
      engine, {golden.ids.begin(), golden.ids.begin() + static_cast<int64_t>(num_tokens)}, 1);
  Distance d;
  double sum_delta = 0.0, sum_squares = 0.0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double delta = golden.logp[i] - rows[i].chosen.logprob;
    d.top1_equal += rows[i].top.at(0).token == golden.top1[i];
    d.mean_abs_dlogp += std::abs(delta);
    sum_delta += delta;
    sum_squares += delta * delta;
  }
  const auto n = static_cast<double>(rows.size());
  d.top1_equal /= n;
  d.mean_abs_dlogp /= n;
  const double mean = sum_delta / n;
  d.perplexity_ratio = std::exp(mean);
  d.perplexity_std_error = std::sqrt((sum_squares / n - mean * mean) / n);
  std::printf("%s: %zu tokens, top-1 equal %.2f %%, mean |dlogp| %.7f, perplexity x %.5f +- %.5f\n",
              golden.name.c_str(),
              num_tokens,
              100 * d.top1_equal,
              d.mean_abs_dlogp,
              d.perplexity_ratio,
              d.perplexity_std_error);
  return d;
}

// The bars of the oracle: it must be exact arithmetic but for rounding.
void check_exact(const std::string& model, const std::string& goldens, size_t num_tokens) {
  const auto engine = engine_for(model, "ref");
  for (const Golden& golden : read_goldens(goldens)) {
    const Distance d = distance(*engine, golden, num_tokens);
    CHECK(d.top1_equal >= 0.99);
    CHECK(d.mean_abs_dlogp <= 0.005);
  }
}

// The bars of the fast path, over whole texts: no farther from the exact result than the peer's own
// quantised path, by each measure, and the perplexity within 0.2 %.
void check_fast(const std::string& device, const std::string& model, const std::string& goldens) {
  constexpr double kPerplexityDrift = 0.002;
  const auto engine = engine_for(model, device);
  for (const Golden& golden : read_goldens(goldens)) {
    const Distance d = distance(*engine, golden, golden.ids.size());
    CHECK(d.top1_equal >= golden.peer.top1_equal);
    CHECK(d.mean_abs_dlogp <= golden.peer.mean_abs_dlogp);
    const double drift = std::abs(d.perplexity_ratio - 1.0);
    CHECK(drift <= std::abs(golden.peer.perplexity_ratio - 1.0));
    CHECK(drift <= kPerplexityDrift);
  }
}

std::string needle_q8_0() {
  return std::string(HW_SOURCE_DIR) + "/tests/data/needle-24m-q8_0.gguf";
}

// Runs the test with the path, or says why not.
void with_file(const std::optional<std::string>& path, const char* what, auto test) {
  if (path.has_value()) return test(*path);
  testing::skip(std::string("no ") + what +
                " (tests/support/test_data.h says where it is looked for)");
}

void with_smollm2(auto test) { with_file(testing::smollm2_path(), "SmolLM2 file", test); }

void check_same_logprobs(const std::string& model_a, const std::string& model_b, double tolerance) {
  const auto ids = read_goldens("needle-24m.json").at(0).ids;
  const std::vector<int32_t> slice(ids.begin(), ids.begin() + 400);
  const auto a = teacher_forced(*engine_for(model_a, "ref"), slice, 20);
  const auto b = teacher_forced(*engine_for(model_b, "ref"), slice, 20);
  double worst = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max<double>(worst, std::abs(a[i].chosen.logprob - b[i].chosen.logprob));
    for (size_t k = 0; k < a[i].top.size(); ++k) {
      worst = std::max<double>(worst, std::abs(a[i].top[k].logprob - b[i].top[k].logprob));
    }
  }
  std::printf("needle-24m safetensors against GGUF F16: largest |dlogp| %.6f\n", worst);
  CHECK(worst <= tolerance);
}

}  // namespace

TEST_CASE("Golden: RefOps is exact on SmolLM2", "[golden]") {
  with_smollm2([](const std::string& model) { check_exact(model, "smollm2-135m.json", kSlice); });
}

TEST_CASE("Golden: CpuOps is no farther than the peer on SmolLM2", "[golden]") {
  with_smollm2([](const std::string& model) { check_fast("cpu", model, "smollm2-135m.json"); });
}

TEST_CASE("Golden: RefOps is exact on SmolLM2 over the whole texts", "[golden][slow]") {
  with_smollm2([](const std::string& model) { check_exact(model, "smollm2-135m.json", kWhole); });
}

TEST_CASE("Golden: needle-24m Q8_0", "[golden]") {
  SECTION("RefOps is exact") { check_exact(needle_q8_0(), "needle-24m.json", kSlice); }
  SECTION("CpuOps is no farther than the peer") {
    check_fast("cpu", needle_q8_0(), "needle-24m.json");
  }
}

TEST_CASE("Golden: CudaOps is no farther than the peer on needle-24m", "[golden][cuda]") {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty())
    return testing::skip(obstacle);
  check_fast("cuda", needle_q8_0(), "needle-24m.json");
}

TEST_CASE("Golden: CudaOps is no farther than the peer on SmolLM2", "[golden][cuda]") {
  if (const std::string obstacle = cuda_obstacle(); !obstacle.empty())
    return testing::skip(obstacle);
  with_smollm2([](const std::string& model) { check_fast("cuda", model, "smollm2-135m.json"); });
}

TEST_CASE("Golden: needle-24m Q8_0 over the whole text", "[golden][slow]") {
  check_exact(needle_q8_0(), "needle-24m.json", kWhole);
}

TEST_CASE("Golden: needle-24m from safetensors and from GGUF F16", "[golden]") {
  with_file(testing::shared_path("models/needle-24m"), "needle-24m", [](const std::string& folder) {
    check_same_logprobs(folder + "/hf", folder + "/needle-f16.gguf", 1e-3);
  });
}
