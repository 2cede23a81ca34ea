#include <array>
#include <catch2/catch.hpp>

#include "engine/attention/head_table.h"
#include "engine/model/fingerprint.h"
#include "kernels/base/status.h"
#include "tests/support/temp_file.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test
using Catch::Matchers::Contains;

namespace {

// The tiny model: 2 layers, 4 query heads, 2 KV heads of 32.
const HeadTableModel& tiny() {
  static const HeadTableModel model = head_table_model(*make_tiny_model());
  return model;
}

constexpr const char* kTable = R"({
  "format": "headwater.head_table/1", "method": "razor",
  "model": {"name": "tiny", "num_layers": 2, "num_kv_heads": 2, "head_dim": 32},
  "classes": {"full": {}, "short": {"sinks": 4, "recent": 64},
              "span": {"recent": 16, "growth": 0.25, "growth_offset": -10, "block": 16},
              "shard": {"recent": 17, "block": 16, "shard": {"stride": 3, "phase": 1}},
              "mean": {"sinks": 4, "recent": 32, "growth": 0.2, "block": 16, "compensate": true}},
  "heads": [["full", "compressed"], ["short", "span"]],
  "ranking": [[0, 0], [1, 1], [1, 0]],
  "scores": {"echo": [[0.5, 0], [0.25, -1e-3]]},
  "calibration": {"tokens": 10001, "data": "random ids"}})";

std::string replaced(const std::string& from, const std::string& to) {
  std::string text = kTable;
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

template <typename Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}
std::string table_refusal(const std::string& text) {
  return refusal([&] { parse_head_table(text, "t.json", tiny()); });
}

const kv::RetentionRule kRule{.sink_tokens = 1, .recent_tokens = 100};

}  // namespace

TEST_CASE("HeadTable: classes become rules per head", "[engine][unit]") {
  const HeadTable table = parse_head_table(kTable, "t.json", tiny());
  REQUIRE(table.method == "razor");
  REQUIRE(table.scores.at("echo") == std::vector<double>{0.5, 0, 0.25, -1e-3});
  const std::vector<kv::RetentionRule> rules = retention_rules(table, kRule);
  REQUIRE(rules.size() == 4);
  REQUIRE(rules[0].keeps_all());
  REQUIRE(rules[1] == kRule);
  REQUIRE(rules[2] == kv::RetentionRule{.sink_tokens = 4, .recent_tokens = 64});
  REQUIRE(rules[3] == kv::RetentionRule{.recent_tokens = 16,
                                        .growth_ppm = 250'000,
                                        .growth_offset = -10,
                                        .block_tokens = 16});
}

TEST_CASE("HeadTable: what is written reads back the same", "[engine][unit]") {
  const HeadTable table = parse_head_table(kTable, "t.json", tiny());
  const std::string text = write_head_table(table);
  REQUIRE_THAT(text, Contains(tiny().fingerprint));
  const HeadTable again = parse_head_table(text, "again", tiny());
  REQUIRE(again.heads == table.heads);
  REQUIRE(again.ranking == table.ranking);
  REQUIRE(again.scores == table.scores);
  REQUIRE(again.classes.size() == table.classes.size());
  for (size_t i = 0; i < table.classes.size(); ++i) {
    REQUIRE(again.classes[i].name == table.classes[i].name);
    REQUIRE(again.classes[i].rule == table.classes[i].rule);
  }
  REQUIRE(write_head_table(again) == text);
  REQUIRE_THAT(text, Contains("\"tokens\":10001.0") && Contains("\"data\":\"random ids\""));
}

TEST_CASE("HeadTable: the ratio re-decides by the ranking", "[engine][unit]") {
  const HeadTable table = parse_head_table(kTable, "t.json", tiny());
  const auto full = [&](double ratio) {
    std::vector<bool> keeps;
    for (const kv::RetentionRule& rule : retention_rules(table, kRule, ratio))
      keeps.push_back(rule.keeps_all());
    return keeps;
  };
  REQUIRE(full(0) == std::vector<bool>{false, false, false, false});
  REQUIRE(full(0.25) == std::vector<bool>{true, false, false, false});
  REQUIRE(full(0.26) == std::vector<bool>{true, false, false, true});
  REQUIRE(full(0.5) == std::vector<bool>{true, false, false, true});
  REQUIRE(full(0.75) == std::vector<bool>{true, false, true, true});
  REQUIRE(retention_rules(table, kRule, 0)[0] == kRule);
  REQUIRE(retention_rules(table, kRule, 0)[2].recent_tokens == 64);
  REQUIRE_THAT(refusal([&] { retention_rules(table, kRule, 1); }),
               Contains("retrieval-ratio") && Contains("4 heads") && Contains("names 3"));
}

TEST_CASE("HeadTable: query heads fold to their KV head by maximum", "[engine][unit]") {
  const std::string text = R"({
    "format": "headwater.head_table/1", "method": "measured", "granularity": "query_head",
    "model": {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32},
    "classes": {"a": {"sinks": 8, "recent": 64}, "b": {"sinks": 4, "recent": 128},
                "grows": {"recent": 16, "growth": 0.5}},
    "heads": [["compressed", "full", "a", "b"], ["a", "grows", "compressed", "compressed"]],
    "ranking": [[1, 1], [1, 0], [0, 3]]})";
  const HeadTable table = parse_head_table(text, "t.json", tiny());
  const auto rules = retention_rules(table, kRule);
  REQUIRE(rules[0].keeps_all());
  REQUIRE(rules[1] == kv::RetentionRule{.sink_tokens = 8, .recent_tokens = 128});
  REQUIRE(rules[2] ==
          kv::RetentionRule{.sink_tokens = 8, .recent_tokens = 64, .growth_ppm = 500'000});
  REQUIRE(rules[3] == kRule);
  const auto two = retention_rules(table, kRule, 0.5);  // query heads 0 and 1 are one KV head
  REQUIRE(two[2].keeps_all());
  REQUIRE(two[1].keeps_all());
  REQUIRE(two[0] == kRule);
}

TEST_CASE("HeadTable: what does not fit is refused with the reason", "[engine][unit]") {
  REQUIRE(table_refusal(kTable) == "accepted");
  REQUIRE_THAT(table_refusal("{"), Contains("t.json") && Contains("not valid JSON"));
  REQUIRE_THAT(table_refusal("[]"), Contains("JSON object"));
  REQUIRE_THAT(table_refusal("\"\xff\xff\xff\""), Contains("not valid JSON"));
  const std::vector<std::array<const char*, 3>> cases = {
      // from, to, what the refusal says
      {"table/1", "table/9", "format must be"},
      {"\"method\": \"razor\"", "\"method\": \"rasor\"", "method must be one of"},
      {"\"method\": \"razor\"",
       "\"methods\": 1, \"method\": \"razor\"",
       "unknown field \"methods\""},
      {", \"method\": \"razor\"", "", "lacks \"method\""},
      {"\"method\": \"razor\"", "\"method\": \"razor\", \"method\": \"razor\"", "appears twice"},
      {"\"num_layers\": 2", "\"num_layers\": 3", "num_layers 3, this one has 2"},
      {"\"num_kv_heads\": 2", "\"num_kv_heads\": 4", "num_kv_heads 4, this one has 2"},
      {"\"head_dim\": 32", "\"head_dim\": 64", "head_dim 64, this one has 32"},
      {"\"head_dim\": 32", "\"head_dim\": 3e1", "head_dim must be a whole number"},
      {"\"name\": \"tiny\"", "\"name\": 7", "name must be a text"},
      {"\"name\": \"tiny\"",
       "\"name\": \"other\", \"fingerprint\": \"0123\"",
       "\"other\" with fingerprint"},
      {"\"full\": {}", "\"full\": {\"recent\": 4}", "keeps everything and has no fields"},
      {"\"full\": {}", "\"compressed\": {\"recent\": 4}", "cannot be defined"},
      {"\"full\": {}", "\"none\": {}", "recent must be a whole number"},
      {"\"recent\": 64", "\"recent\": 0", "recent must be a whole number from 1"},
      {"\"recent\": 64", "\"recent\": 1e99", "recent must be a whole number"},
      {"\"recent\": 64", "\"recent\": 99999999999999999999", "recent must be a whole number"},
      {"\"recent\": 64", "\"span\": 64", "unknown field \"span\""},
      {"\"sinks\": 4", "\"sinks\": -1", "sinks must be a whole number from 0"},
      {"\"growth\": 0.25", "\"growth\": 1.01", "growth must be a number from 0 to 1, got 1.01"},
      {"\"growth\": 0.25", "\"growth\": -0.1", "growth must be a number from 0 to 1"},
      {"\"growth\": 0.25", "\"growth\": null", "growth must be a number from 0 to 1, got null"},
      {"\"growth_offset\": -10", "\"growth_offset\": 0.5", "growth_offset must be a whole number"},
      {"\"block\": 16}", "\"block\": 0}", "block must be a whole number from 1"},
      {"\"stride\": 3", "\"stride\": 0", "shard.stride must be"},
      {"\"phase\": 1", "\"phase\": 3", "shard.phase must be a whole number from 0 to 2"},
      {"\"phase\": 1", "\"at\": 1", "unknown field \"at\""},
      {"\"compensate\": true", "\"compensate\": 1", "compensate must be true or false"},
      {"\"recent\": 32", "\"recent\": 1", "compensate needs recent of at least 2"},
      {"[[\"full\", \"compressed\"]", "[[\"full\"]", "heads[0] must list 2 KV heads"},
      {"[[\"full\", \"compressed\"], ", "[", "heads must list 2 layers"},
      {"[[\"full\", \"compressed\"]", "[[\"full\", 3]", "unknown class 3"},
      {"[\"short\", \"span\"]", "[\"x\", \"span\"]", "unknown class \"x\""},
      {"[[0, 0], [1, 1]", "[[0, 2], [1, 1]", "ranking[0] head must be a whole number from 0 to 1"},
      {"[[0, 0], [1, 1]", "[[-1, 0], [1, 1]", "ranking[0] layer must be"},
      {"[[0, 0], [1, 1]", "[[0, 0], [0, 0]", "ranking[1] repeats head 0 of layer 0"},
      {"[[0, 0], [1, 1]", "[0, [1, 1]", "ranking[0] must be [layer, head]"},
      {"[[0.5, 0]", "[[0.5]", "must list 2 KV heads"},
      {"[[0.5, 0]", "[[0.5, null]", "a score must be a finite number, got null"},
      {"[[0.5, 0]", "[[0.5, NaN]", "NaN is no number"},
      {"[[0.5, 0]", "[[0.5, -Infinity]", "Infinity is no number"},
      {"[[0.5, 0]", "[[0.5, 1e999]", "number is out of range"},
      {"\"tokens\": 10001", "\"tokens\": [1]", "calibration.\"tokens\" must be a number or a text"},
      {"\"calibration\"", "\"granularity\": \"head\", \"calibration\"", "granularity must be"},
  };
  for (const auto& [from, to, reason] : cases) {
    CAPTURE(from, to);
    REQUIRE_THAT(table_refusal(replaced(from, to)), Contains("t.json") && Contains(reason));
  }
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  REQUIRE_THAT(table_refusal(deep), Contains("nested deeper"));
  REQUIRE_THAT(table_refusal("{\"heads\": " + deep + "}"), Contains("nested deeper"));
  const TempFolder folder;
  REQUIRE_THAT(refusal([&] { load_head_table(folder.path().string() + "/no.json", tiny()); }),
               Contains("no.json") && Contains("head-table"));
}

TEST_CASE("HeadTable: a fingerprint binds a table to its model, not to its format",
          "[engine][unit]") {
  const auto print = [](auto change) {
    TinyModelOptions options;
    change(options);
    return model_fingerprint(*make_tiny_model(options));
  };
  REQUIRE(tiny().fingerprint.size() == 16);
  REQUIRE(print([](TinyModelOptions&) {}) == tiny().fingerprint);
  REQUIRE(print([](TinyModelOptions& o) { o.format = QuantFormat::kQ8_0; }) == tiny().fingerprint);
  REQUIRE(print([](TinyModelOptions& o) { o.seed = 2; }) == tiny().fingerprint);
  REQUIRE(print([](TinyModelOptions& o) { o.num_layers = 3; }) != tiny().fingerprint);
  REQUIRE(print([](TinyModelOptions& o) { o.ffn_dim = 256; }) != tiny().fingerprint);
  REQUIRE(print([](TinyModelOptions& o) { o.num_kv_heads = 4; }) != tiny().fingerprint);
  REQUIRE(print([](TinyModelOptions& o) { o.rope_base = 20000; }) != tiny().fingerprint);
  REQUIRE(print([](TinyModelOptions& o) { o.max_positions = 8192; }) != tiny().fingerprint);
}
