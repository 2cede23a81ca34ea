// From options and head tables to one retention rule per head: policies, published tables, shipped
// tables.
#include <catch2/catch.hpp>

#include "engine/attention/head_table_published.h"
#include "engine/attention/policy_table.h"
#include "engine/config/config_check.h"
#include "engine/model/fingerprint.h"
#include "kernels/base/status.h"
#include "tests/support/temp_file.h"
#include "tests/support/tiny_model.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::testing;  // NOLINT: test
using Catch::Matchers::Contains;

namespace {

// For the tiny model: 2 layers, 4 query heads, 2 KV heads of 32.
constexpr const char* kTable = R"({
  "format": "headwater.head_table/1", "method": "razor",
  "model": {"num_layers": 2, "num_kv_heads": 2, "head_dim": 32},
  "heads": [["full", "compressed"], ["compressed", "compressed"]],
  "ranking": [[0, 0], [1, 1], [1, 0], [0, 1]]})";

std::string shipped_text(const std::string& method, const std::string& fingerprint) {
  HeadTable table;
  table.method = method;
  table.model = head_table_model(*make_tiny_model());
  table.model.fingerprint = fingerprint;
  table.heads.assign(4, HeadTable::kCompressed);
  table.heads[3] = HeadTable::kFull;
  return write_head_table(table);
}

}  // namespace

TEST_CASE("Policies: every row gives a rule per head", "[engine][unit]") {
  const auto model = make_tiny_model();
  const TempFolder folder;
  const std::string table = folder.add("t.json", kTable);
  std::string known;
  for (const AttentionPolicy& policy : attention_policies()) {
    CAPTURE(policy.name);
    REQUIRE(find_policy(policy.name) == &policy);
    EngineConfig config;
    config.model = std::string("tiny");
    config.attention = policy.name;
    REQUIRE(check_engine_config(config).empty());
    if (policy.table == TableUse::kRequired)
      REQUIRE_THROWS_WITH(plan_attention(config, *model), Contains("head-table"));
    if (policy.table != TableUse::kRefused) config.head_table = table;
    const AttentionPlan plan = plan_attention(config, *model);
    REQUIRE(plan.rules.size() == 4);
    REQUIRE(plan.faithful == policy.faithful);
    REQUIRE(plan.num_full() == (policy.table == TableUse::kRefused ? 4 : 1));
    if (policy.table != TableUse::kRefused) {
      REQUIRE(plan.rules[1] == policy.compressed);
      REQUIRE(plan.method == "razor");
    }
    config.prefill_mode = policy.faithful ? "streaming" : "faithful";
    REQUIRE(plan_attention(config, *model).faithful != policy.faithful);
    known += (known.empty() ? "" : ", ") + std::string(policy.name);
  }
  REQUIRE(policy_names() == known);
  REQUIRE(find_policy("nonesuch") == nullptr);
  EngineConfig wrong;
  wrong.attention = std::string("nonesuch");
  REQUIRE_THROWS_WITH(plan_attention(wrong, *model), Contains(known));
  wrong.attention = "dense";
  wrong.head_table = table;
  REQUIRE_THROWS_WITH(plan_attention(wrong, *model), Contains("head-table"));
  wrong = {};
  wrong.attention = "window";
  wrong.retrieval_ratio = 0.5;
  REQUIRE_THROWS_WITH(plan_attention(wrong, *model), Contains("retrieval-ratio"));
}

TEST_CASE("Policies: options change the compressed heads", "[engine][unit]") {
  const auto model = make_tiny_model();
  const TempFolder folder;
  EngineConfig config;
  config.attention = "razor";
  config.head_table = folder.add("t.json", kTable);
  config.retrieval_ratio = 0.5;
  REQUIRE(plan_attention(config, *model).rules[1] == kv::RetentionRule{.sink_tokens = 4,
                                                                       .recent_tokens = 4000,
                                                                       .growth_ppm = 200'000,
                                                                       .block_tokens = 384,
                                                                       .compensate = true});
  config.window_sinks = 0;
  config.window_recent = 100;
  config.window_growth = 0;
  config.window_block = 32;
  const AttentionPlan plan = plan_attention(config, *model);
  REQUIRE(plan.num_full() == 2);
  REQUIRE(plan.rules[1] ==
          kv::RetentionRule{.recent_tokens = 100, .block_tokens = 32, .compensate = true});
  config.window_recent = 1;
  REQUIRE_THROWS_WITH(plan_attention(config, *model), Contains("window-recent"));
}

TEST_CASE("Policies: S2 shards cover every block, and see whole blocks", "[engine][unit]") {
  TinyModelOptions options;
  options.num_layers = 4;
  const auto model = make_tiny_model(options);
  EngineConfig config;
  config.attention = "s2";
  const std::vector<kv::RetentionRule> rules = plan_attention(config, *model).rules;
  std::vector<int> keepers(8, 0);  // of block b mod 8
  for (const kv::RetentionRule& rule : rules)
    for (int block = 0; block < 8; ++block)
      keepers[static_cast<size_t>(block)] += rule.permanent(block * 64);
  REQUIRE(keepers == std::vector<int>(8, 1));  // 4 layers x 2 heads
  for (const int32_t position : {15 * 64, 40 * 64, 40 * 64 + 63, 41 * 64})
    REQUIRE(rules[0].window_start(position) == (position / 64 - 15) * 64);
  config.s2_dense_heads = 1;
  config.s2_stride = 2;
  const std::vector<kv::RetentionRule> mixed = plan_attention(config, *model).rules;
  REQUIRE(!mixed[0].keeps_all());
  REQUIRE(mixed[1].keeps_all());
}

TEST_CASE("Published tables: DuoAttention's gates and their quantile", "[engine][unit]") {
  const auto model = make_tiny_model();
  const HeadTableModel facts = head_table_model(*model);
  const TempFolder folder;
  const std::string tsv = folder.add("full_attention_heads.tsv", "0.25\t1.0\n0.75\t5e-1\n");
  const auto full = [&](const std::string& path, double sparsity) {
    std::vector<bool> keeps;
    for (const kv::RetentionRule& rule :
         retention_rules(load_head_table(path, facts, sparsity), {.recent_tokens = 8}))
      keeps.push_back(rule.keeps_all());
    return keeps;
  };
  const std::string path = folder.path().string();
  REQUIRE(full(path, 0.5) == std::vector<bool>{false, true, true, false});
  REQUIRE(full(tsv, 0.5) == full(path, 0.5));
  REQUIRE(full(tsv, 0) == std::vector<bool>(4, true));
  REQUIRE(full(tsv, 0.33) == std::vector<bool>{false, true, true, true});
  REQUIRE(full(tsv, 1) == std::vector<bool>{false, true, false, false});
  REQUIRE(load_head_table(path, facts).remarks.empty());
  folder.add("config.json", R"({"sink_size": 128, "recent_size": 512, "lr": 0.02})");
  REQUIRE_THAT(load_head_table(path, facts).remarks.at(0), Contains("128") && Contains("512"));

  // Deployed sizes, not those of training; the ratio works as on any ranking.
  EngineConfig config;
  config.attention = "duo";
  config.head_table = path;
  AttentionPlan plan = plan_attention(config, *model);
  REQUIRE(plan.num_full() == 2);
  REQUIRE(plan.rules[0] == kv::RetentionRule{.sink_tokens = 64, .recent_tokens = 256});
  config.retrieval_ratio = 0.25;
  plan = plan_attention(config, *model);
  REQUIRE(plan.num_full() == 1);
  REQUIRE(plan.rules[1].keeps_all());

  // Equal gates: the earlier heads, and no more than the share asked for.
  const HeadTable equal = parse_duo_table("1\t1\r\n1\t1\r\n", "t.tsv", facts, 0.5);
  REQUIRE(equal.heads == std::vector<int32_t>{0, 0, 1, 1});

  const auto refusal = [&](const std::string& text) -> std::string {
    try {
      parse_duo_table(text, "t.tsv", facts, 0.5);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  REQUIRE_THAT(refusal("1\t1\n"), Contains("t.tsv") && Contains("each of 2 layers, has 1"));
  REQUIRE_THAT(refusal("1\t1\n1\n"), Contains("line 2 must have 2 gates"));
  REQUIRE_THAT(refusal("1\t1\n1\tnan\n"), Contains("finite number, got \"nan\""));
  REQUIRE_THAT(refusal("1\t1\n1\tinf\n"), Contains("finite number"));
  REQUIRE_THAT(refusal("1\t1\n1\tx\n"), Contains("got \"x\""));
  REQUIRE_THAT(refusal(""), Contains("has 1"));
  folder.add("config.json", "[]");
  REQUIRE_THROWS_AS(load_head_table(path, facts), ConfigError);
}

TEST_CASE("Published tables: MoA's spans, by KV head or folded from query heads",
          "[engine][unit]") {
  const auto model = make_tiny_model();
  const HeadTableModel facts = head_table_model(*model);
  const HeadTable table = parse_head_table(
      R"({"alphas": [[0, 1024], [-1024, 64]], "betas": [[1.0, 0], [0.5, 0.125]]})", "moa", facts);
  REQUIRE(table.method == "moa");
  const auto rules = retention_rules(table, {});
  for (int32_t position = 0; position < 4000; ++position) {
    // Everything is seen; at most a block more than the span, and at least 128.
    REQUIRE(std::min(rules[0].window_start(position), 64) == rules[0].window_start(position));
    const int32_t kept = position + 1 - rules[1].window_start(position) + 64;
    REQUIRE((position < 1024 || (kept >= 1024 && kept < 1024 + 64)));
    const int32_t half = position + 1 - rules[2].window_start(position) + 64;
    const int32_t span = std::max(128, -1024 + (position + 1) / 2);
    REQUIRE((position < 128 || (half >= span && half <= span + 64)));
  }
  REQUIRE(rules[3].sink_tokens == 64);

  EngineConfig config;
  config.attention = "moa";
  const TempFolder folder;
  config.head_table = folder.add(
      "moa.json",
      R"({"alphas": [[0, 512, 256, 128], [-64, 200, 0, 0]], "betas": [[1, 0, 0, 0], [0.5, 0, 0, 0]]})");
  const AttentionPlan plan = plan_attention(config, *model);
  REQUIRE_THAT(plan.remarks.at(0), Contains("4 query heads") && Contains("widest of its 2"));
  REQUIRE(plan.rules[0].growth_ppm == 1'000'000);
  REQUIRE(plan.rules[1] == moa_rule(256, 0));
  REQUIRE(plan.rules[2].growth_ppm == 500'000);
  REQUIRE(plan.rules[2].recent_tokens == 200 - 64);
  REQUIRE(plan.rules[3] == moa_rule(0, 0));
  REQUIRE_FALSE(plan.faithful);

  const auto refusal = [&](const std::string& text) -> std::string {
    try {
      parse_head_table(text, "moa.json", facts);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  REQUIRE_THAT(refusal(R"({"alphas": [[0, 0], [0, 0]]})"), Contains("betas must list 2 layers"));
  REQUIRE_THAT(refusal(R"({"alphas": [[0, 0, 0], [0, 0, 0]], "betas": []})"),
               Contains("2 KV heads or 4 query heads"));
  REQUIRE_THAT(refusal(R"({"alphas": [[0, 0], [0, 0]], "betas": [[0, 0], [0, 1.5]]})"),
               Contains("beta must be between 0 and 1, got 1.5"));
  REQUIRE_THAT(refusal(R"({"alphas": [[0, 0], [0, 1e30]], "betas": [[0, 0], [0, 1]]})"),
               Contains("alpha must be within"));
  REQUIRE_THAT(refusal(R"({"alphas": [[0, 0], [0, null]], "betas": [[0, 0], [0, 1]]})"),
               Contains("finite"));
  REQUIRE_THAT(refusal(R"({"alphas": [], "betas": [], "gammas": []})"), Contains("\"gammas\""));
}

TEST_CASE("Shipped tables: found by fingerprint and method", "[engine][unit]") {
  const auto model = make_tiny_model();
  const std::string own = model_fingerprint(*model);
  const std::string razor = shipped_text("razor", own);
  const std::string measured = shipped_text("measured", own);
  const std::string duo_of_other = shipped_text("duo", "0000000000000000");
  const std::vector<ShippedTable> shipped = {{"other.duo.json", duo_of_other},
                                             {"tiny.razor.json", razor},
                                             {"tiny.measured.json", measured}};
  const auto plan = [&](const std::string& attention, const std::string& table, size_t first = 0) {
    EngineConfig config;
    config.attention = attention;
    config.head_table = table;
    return plan_attention(config, *model, std::span(shipped).subspan(first));
  };
  REQUIRE(plan("razor", "").table == "shipped tiny.razor.json");
  REQUIRE(plan("razor", "auto").rules[3].keeps_all());
  REQUIRE(plan("razor", "", 2).method == "measured");
  REQUIRE(plan("duo", "").table == "shipped tiny.measured.json");
  REQUIRE(plan("window", "").table.empty());
  REQUIRE_THROWS_WITH(plan("moa", "auto"), Contains(own) && Contains("calibrate"));
  REQUIRE_THROWS_WITH(plan("window", "auto"), Contains("head-table"));
  const AttentionPlan best = plan("auto", "");
  REQUIRE(best.policy == "razor");
  REQUIRE(best.method == "measured");
  REQUIRE(best.faithful);
  REQUIRE(plan("auto", "", 3).policy == "dense");
  REQUIRE(plan("auto", "", 3).num_full() == 4);
  const TempFolder folder;
  REQUIRE(plan("auto", folder.add("duo.tsv", "0\t1\n1\t0\n")).policy == "duo");

  // Those built into the binary are sound: the native format, a known method, a fingerprint.
  for (const ShippedTable& table : shipped_head_tables()) {
    CAPTURE(table.name);
    const HeadTableLabel label = head_table_label(table.json, std::string(table.name));
    REQUIRE(label.fingerprint.size() == 16);
    REQUIRE_THAT(std::string(table.name), Catch::Matchers::EndsWith("." + label.method + ".json"));
  }
}
