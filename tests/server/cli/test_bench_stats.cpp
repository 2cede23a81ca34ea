#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/base/status.h"
#include "server/cli/bench_load.h"
#include "server/cli/bench_stats.h"
#include "server/cli/http_client.h"

namespace headwater::cli {
namespace {

using Catch::Matchers::Contains;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

RequestRecord record(double start, double ttft, std::vector<double> itl, int64_t tokens) {
  RequestRecord r;
  r.success = true;
  r.start_s = start;
  r.ttft_s = ttft;
  r.latency_s = ttft;
  for (const double gap : itl) r.latency_s += gap;
  r.itl_s = std::move(itl);
  r.prompt_tokens = 10;
  r.output_tokens = tokens;
  return r;
}

}  // namespace

TEST_CASE("Bench: percentiles are linear between ranks, the deviation is the population's",
          "[server][unit]") {
  // numpy: np.percentile([1..5], [25, 90, 99]), np.std
  const Spread s = spread_of({0.005, 0.001, 0.003, 0.002, 0.004}, {25, 90, 99, 0, 100});
  CHECK(s.mean_ms == Approx(3.0));
  CHECK(s.median_ms == Approx(3.0));
  CHECK(s.std_ms == Approx(1.4142136));
  CHECK(s.percentiles_ms[0] == Approx(2.0));
  CHECK(s.percentiles_ms[1] == Approx(4.6));
  CHECK(s.percentiles_ms[2] == Approx(4.96));
  CHECK(s.percentiles_ms[3] == Approx(1.0));
  CHECK(s.percentiles_ms[4] == Approx(5.0));
  CHECK(spread_of({0.001, 0.004}, {}).median_ms == Approx(2.5));
  CHECK(spread_of({}, {99}).percentiles_ms == std::vector<double>{0});
}

TEST_CASE("Bench: TPOT leaves the first token out, ITL pools chunk gaps", "[server][unit]") {
  RequestRecord failed;
  failed.error = "HTTP 500";
  const std::vector<RequestRecord> records = {
      record(0, 0.1, {0.02, 0.04}, 5),  // chunks carry several tokens
      record(0, 0.3, {}, 1),            // one token: no TPOT
      failed,
  };
  const BenchSummary s = summarize(records, 2.0, {}, {99});
  CHECK(s.completed == 2);
  CHECK(s.failed == 1);
  CHECK(s.ttft.mean_ms == Approx(200));
  CHECK(s.tpot.mean_ms == Approx(15));  // 60 ms over 4 tokens
  CHECK(s.itl.mean_ms == Approx(30));
  CHECK(s.e2el.mean_ms == Approx((160 + 300) / 2.0));
  CHECK(s.total_input_tokens == 20);
  CHECK(s.output_throughput == Approx(3.0));
  CHECK(s.total_token_throughput == Approx(13.0));
  CHECK(s.request_throughput == Approx(1.0));
  CHECK(s.tokens_per_chunk == Approx(1.5));
  CHECK_FALSE(s.request_goodput);
}

TEST_CASE("Bench: goodput wants every bound kept", "[server][unit]") {
  const std::vector<RequestRecord> records = {record(0, 0.1, {0.02, 0.02}, 3),
                                              record(0, 0.3, {0.01}, 2),
                                              record(0, 0.1, {0.09}, 2),
                                              record(0, 0.1, {}, 1)};
  CHECK(*summarize(records, 2, parse_goodput("ttft:200"), {}).request_goodput == Approx(1.5));
  CHECK(*summarize(records, 2, parse_goodput("ttft:200 tpot:50"), {}).request_goodput ==
        Approx(1.0));
  CHECK(*summarize(records, 2, parse_goodput("e2el:120"), {}).request_goodput == Approx(0.5));
  CHECK_THROWS_AS(parse_goodput("tttt:3"), ConfigError);
  CHECK_THROWS_AS(parse_goodput("ttft"), ConfigError);
  CHECK_THROWS_AS(parse_goodput("ttft:-1"), ConfigError);
  CHECK(parse_percentiles("50,99.9") == std::vector<double>{50, 99.9});
  CHECK_THROWS_AS(parse_percentiles("101"), ConfigError);
}

TEST_CASE("Bench: peaks", "[server][unit]") {
  // chunks at 0.5, 0.6 | 1.2, 1.3, 1.4; two requests touch at 1.0 and do not overlap there
  const std::vector<RequestRecord> records = {record(0, 0.5, {0.1, 0.4}, 3),
                                              record(1.0, 0.2, {0.1, 0.1}, 3)};
  const BenchSummary s = summarize(records, 2, {}, {});
  CHECK(s.max_concurrent_requests == 1);
  CHECK(s.max_output_tokens_per_s == 4);  // 1.0, 1.2, 1.3, 1.4
  CHECK(
      summarize({record(0, 1, {}, 1), record(0.5, 1, {}, 1)}, 2, {}, {}).max_concurrent_requests ==
      2);
}

TEST_CASE("Bench: table and JSON have vLLM's labels and keys", "[server][unit]") {
  const std::vector<RequestRecord> records = {record(0, 0.1, {0.02}, 2)};
  const BenchSummary s = summarize(records, 1.0, parse_goodput("ttft:200"), {50, 99.9});
  const std::string table = format_table(s, {2.0, 4});
  CHECK_THAT(table, Contains("============ Serving Benchmark Result ============\n"));
  CHECK_THAT(table, Contains("\nSuccessful requests:                     1         \n"));
  CHECK_THAT(table, Contains("\nMaximum request concurrency:             4         \n"));
  CHECK_THAT(table, Contains("\nRequest rate configured (RPS):           2.00      \n"));
  CHECK_THAT(table, Contains("\nRequest goodput (req/s):                 1.00      \n"));
  CHECK_THAT(table, Contains("\n---------------Time to First Token----------------\n"));
  CHECK_THAT(table, Contains("\n-----Time per Output Token (excl. 1st token)------\n"));
  CHECK_THAT(table, Contains("\n---------------Inter-token Latency----------------\n"));
  CHECK_THAT(table, Contains("\n----------------End-to-end Latency----------------\n"));
  CHECK_THAT(table, Contains("\nP99.9 TTFT (ms):                         100.00    \n"));
  const auto json = to_json(s, {kInfinity, 0}, records);
  CHECK(json["request_rate"] == "inf");
  CHECK(json["max_concurrency"].is_null());
  for (const char* key : {"request_throughput",
                          "output_throughput",
                          "total_token_throughput",
                          "mean_ttft_ms",
                          "median_tpot_ms",
                          "p99.9_itl_ms",
                          "std_e2el_ms",
                          "request_goodput",
                          "input_lens",
                          "itls",
                          "errors"}) {
    INFO(key);
    CHECK(json.contains(key));
  }
  CHECK_THAT(format_table(summarize({}, 1, {}, {99}), {kInfinity, 0}),
             !Contains("RPS") && !Contains("concurrency:") && !Contains("goodput"));
}

TEST_CASE("Bench: arrivals are a seeded Poisson process", "[server][unit]") {
  const auto a = arrival_times(20000, 50, 7);
  CHECK(a == arrival_times(20000, 50, 7));
  CHECK(a != arrival_times(20000, 50, 8));
  CHECK(a.front() == 0);
  CHECK(a.back() / 19999 == Approx(0.02).epsilon(0.03));
  // exponential gaps: the deviation equals the mean
  double squares = 0;
  for (size_t i = 1; i < a.size(); ++i) squares += std::pow(a[i] - a[i - 1] - 0.02, 2);
  CHECK(std::sqrt(squares / 19999) == Approx(0.02).epsilon(0.05));
  CHECK(arrival_times(3, kInfinity, 1) == std::vector<double>{0, 0, 0});
}

TEST_CASE("Bench: events of a stream", "[server][unit]") {
  RequestRecord r;
  r.start_s = 10;
  CHECK_FALSE(take_event(
      R"({"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null})", 10.5, r));
  CHECK_FALSE(take_event(R"({"choices":[{"text":"ab"}]})", 10.75, r));
  CHECK_FALSE(
      take_event(R"({"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}})", 12, r));
  CHECK(take_event("[DONE]", 12, r));
  CHECK(r.ttft_s == Approx(0.5));  // the first chunk with choices, even without text
  CHECK(r.itl_s.size() == 1);
  CHECK(r.itl_s[0] == Approx(0.25));
  CHECK(r.latency_s == Approx(0.75));  // not the usage chunk
  CHECK(r.prompt_tokens == 7);
  CHECK(r.output_tokens == 9);
  CHECK(r.text == "ab");
  take_event(R"({"error":{"message":"boom"}})", 13, r);
  CHECK(r.error == "boom");
  RequestRecord bad;
  take_event("{", 1, bad);
  CHECK_THAT(bad.error, Contains("not a JSON object"));
}

TEST_CASE("SseParser: payloads across any cut", "[server][unit]") {
  const std::string stream =
      ": ping\r\n\r\ndata: a\n\nevent: x\ndata:b\ndata: c\n\ndata: [DONE]\r\n\r\n";
  for (size_t cut = 0; cut <= stream.size(); ++cut) {
    std::vector<std::string> got;
    SseParser parser;
    const auto take = [&](std::string_view data) { got.emplace_back(data); };
    parser.feed(std::string_view(stream).substr(0, cut), take);
    parser.feed(std::string_view(stream).substr(cut), take);
    CHECK(got == std::vector<std::string>{"a", "b\nc", "[DONE]"});
  }
}

TEST_CASE("Url: parts and mistakes", "[server][unit]") {
  const Url url = parse_url("http://example.org:81/v/");
  CHECK((url.host == "example.org" && url.port == "81" && url.path == "/v"));
  CHECK(parse_url("localhost:8000").port == "8000");
  CHECK(parse_url("http://[::1]:9").host == "::1");
  CHECK(parse_url("http://host").port == "80");
  CHECK_THROWS_AS(parse_url("https://host"), ConfigError);
  CHECK_THROWS_AS(parse_url("http://:80"), ConfigError);
  CHECK_THROWS_AS(parse_url("http://host:eighty"), ConfigError);
}

}  // namespace headwater::cli
