#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/quality/head_variants.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::quality;  // NOLINT: test

namespace {

std::vector<kv::RetentionRule> some_full(std::vector<bool> full) {
  const kv::RetentionRule window{4, 64};
  std::vector<kv::RetentionRule> rules;
  for (const bool keeps : full) rules.push_back(keeps ? kv::RetentionRule{} : window);
  return rules;
}

}  // namespace

TEST_CASE("Head variants: draws hold as many heads as the table, all-but the others",
          "[quality][unit]") {
  const auto rules = some_full({true, false, true, false, false, false, false, false});
  const auto variants = table_variants("t", rules, 30, 7);
  REQUIRE(variants.size() == 32);
  CHECK(variants[0].name == "t");
  CHECK(variants[0].rules == rules);
  CHECK(variants[0].num_full == 2);
  CHECK(variants[0].num_held == 2);
  std::map<int32_t, int> held;
  for (size_t i = 1; i <= 30; ++i) {
    const HeadVariant& draw = variants[i];
    CHECK(draw.kind == VariantKind::kRandom);
    CHECK(draw.num_full == 2);
    CHECK(std::count(draw.rules.begin(), draw.rules.end(), rules[1]) == 6);
    ++held[draw.num_held];
  }
  CHECK(held[0] > held[2]);  // 15 of 28 pairs hold none of the two, 1 holds both
  CHECK(variants[31].kind == VariantKind::kAllBut);
  CHECK(variants[31].num_full == 6);
  CHECK(variants[31].num_held == 0);
  CHECK(table_variants("t", rules, 30, 7)[5].rules == variants[5].rules);
  CHECK(table_variants("t", rules, 30, 8)[5].rules != variants[5].rules);

  const auto json = variant_json(variants[0], 4, {DType::kF32, 64, 16, 0}, {64, 1024});
  CHECK(json["kv_share"]["64"] == 1.0);
  // 2 of 8 heads keep 1024 tokens, 6 keep a page of sinks and a window of 64 that opens a page.
  CHECK(json["kv_share"]["1024"].get<double>() < 0.34);
  CHECK(json["kv_share"]["1024"].get<double>() > 0.3);
}
