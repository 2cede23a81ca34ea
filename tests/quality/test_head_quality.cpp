// The slice of tests/quality that runs everywhere: the shipped head tables of needle-24m against
// dense and against random heads, on generated questions over 2,000 tokens with windows small
// enough to drop most of them.
#include <catch2/catch.hpp>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "engine/attention/policy_table.h"
#include "engine/calibrate/probe.h"
#include "server/cli/quality_tasks.h"
#include "tests/quality/head_variants.h"
#include "tests/support/test_device.h"

using namespace headwater;           // NOLINT: test
using namespace headwater::quality;  // NOLINT: test
using testing::each_device;

namespace {

constexpr const char* kModel = HW_SOURCE_DIR "/tests/data/needle-24m-q8_0.gguf";
constexpr int32_t kMaxTokens = 32;

std::vector<kv::RetentionRule> shipped_rules(const LoadedModel& files, const std::string& method) {
  EngineConfig config;
  config.attention = "razor";
  config.head_table = HW_SOURCE_DIR "/configs/head_tables/needle-24m." + method + ".json";
  config.window_recent = 256;
  config.window_growth = 0;
  config.window_block = 64;
  return plan_attention(config, files).rules;
}

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

TEST_CASE("Head tables: the shipped ones of needle-24m answer, random heads do not",
          "[quality][device]") {
  const auto device = each_device();
  if (!device) return;
  if (device->name == "ref" || device->eager) return;  // slow, and nothing else
  const auto files = load_model(kModel);
  const auto tokenizer = make_tokenizer(files->vocabulary);
  ThreadPool pool(2);
  const auto ops = testing::make_ops(*device, pool);
  Model model(*files, *ops, {512, 1});
  Probe probe(model, *ops);
  const int32_t newline = tokenizer->encode("\n", false, false).at(0);

  constexpr int32_t kDraws = 6;
  std::vector<HeadVariant> variants = {dense_variant(static_cast<size_t>(probe.num_heads()))};
  for (const char* method : {"razor", "measured"}) {
    const auto more = table_variants(method, shipped_rules(*files, method), kDraws, 1);
    variants.insert(variants.end(), more.begin(), more.end());
  }
  std::map<std::string, double> recall;  // by variant; the random ones of a table together
  int num_prompts = 0;
  for (const char* name : {"needle", "multikey", "copy", "multivalue"}) {
    for (const double depth : {0.1, 0.5}) {
      const cli::QualityPrompt question = cli::find_quality_task(name)->make(
          1'900, depth, 100 + static_cast<uint64_t>(num_prompts));
      ++num_prompts;
      ProbePrompt prompt = probe.read(
          tokenizer->encode(question.context + question.question, true, false), kMaxTokens);
      for (const HeadVariant& variant : variants) {
        std::string text;
        for (const int32_t id :
             probe.greedy(prompt, variant.rules, kMaxTokens, std::span(&newline, 1)))
          text += tokenizer->token_bytes(id, false);
        const bool random = variant.kind == VariantKind::kRandom;
        recall[random ? variant.table + ":random" : variant.name] +=
            cli::recall_of(question.expected, text) / (random ? kDraws : 1);
      }
    }
  }
  for (auto& [name, sum] : recall) {
    sum /= num_prompts;
    std::printf("%-18s %5.1f %%\n", name.c_str(), 100 * sum);
  }
  CHECK(recall["dense"] >= 0.85);
  for (const std::string table : {"razor", "measured"}) {
    CAPTURE(table);
    CHECK(recall[table + ":random"] <= recall["dense"] - 0.3);
    CHECK(recall[table + ":all-but"] <= recall["dense"] - 0.3);
  }
  CHECK(recall["measured"] >= recall["dense"] - 0.1);
}
