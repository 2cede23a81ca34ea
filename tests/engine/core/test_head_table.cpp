#include <catch2/catch.hpp>

#include "engine/attention/head_table.h"
#include "engine/attention/policy_table.h"
#include "kernels/base/status.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test
using Catch::Matchers::Contains;

namespace {

constexpr const char* kTable = R"({
  "format": "headwater.head_table/1", "method": "window",
  "model": {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32},
  "classes": {"full": {}, "window": {"sinks": 4, "recent": 64}},
  "heads": [["full", "window"], ["window", "window"]]})";

std::string replaced(const std::string& from, const std::string& to) {
  std::string text = kTable;
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("HeadTable: classes become rules per head", "[engine][unit]") {
  const auto model = make_tiny_model();
  const HeadTable table = parse_head_table(kTable, "t.json", model->spec);
  REQUIRE(table.method == "window");
  REQUIRE(table.rules.size() == 4);
  REQUIRE(table.rules[0].keeps_all());
  REQUIRE(table.rules[1] == kv::RetentionRule{4, 64});
}

TEST_CASE("HeadTable: what does not fit is refused with the reason", "[engine][unit]") {
  const auto model = make_tiny_model();
  const auto refusal = [&](const std::string& text) -> std::string {
    try {
      parse_head_table(text, "t.json", model->spec);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  REQUIRE_THAT(refusal("{"), Contains("t.json") && Contains("not valid JSON"));
  REQUIRE_THAT(refusal("[]"), Contains("JSON object"));
  REQUIRE_THAT(refusal(replaced("table/1", "table/9")), Contains("format"));
  REQUIRE_THAT(refusal(replaced("\"num_layers\": 2", "\"num_layers\": 3")),
               Contains("num_layers 3") && Contains("has 2"));
  REQUIRE_THAT(refusal(replaced("\"recent\": 64", "\"recent\": 0")), Contains("recent"));
  REQUIRE_THAT(refusal(replaced("\"recent\": 64", "\"recent\": 1e99")), Contains("recent"));
  REQUIRE_THAT(refusal(replaced("\"recent\": 64", "\"span\": 64")), Contains("span"));
  REQUIRE_THAT(refusal(replaced("[\"full\", \"window\"]", "[\"full\"]")), Contains("heads[0]"));
  REQUIRE_THAT(refusal(replaced("[\"full\", \"window\"]", "[\"full\", 3]")), Contains("class"));
  REQUIRE_THAT(refusal(replaced("[\"window\", \"window\"]]", "[\"x\", \"window\"]]")),
               Contains("\"x\""));
}

TEST_CASE("Policies: every row gives a rule per head", "[engine][unit]") {
  const auto model = make_tiny_model();
  EngineConfig config;
  for (const AttentionPolicy& policy : attention_policies()) {
    REQUIRE(find_policy(policy.name) == &policy);
    REQUIRE(policy.rules(config, model->spec).size() == 4);
  }
  REQUIRE(find_policy("nonesuch") == nullptr);
  config.head_table = "missing.json";
  REQUIRE_THROWS_WITH(find_policy("window")->rules(config, model->spec), Contains("missing.json"));
  REQUIRE_THROWS_WITH(find_policy("dense")->rules(config, model->spec), Contains("head-table"));
}
