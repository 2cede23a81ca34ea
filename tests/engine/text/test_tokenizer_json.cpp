#include <catch2/catch.hpp>

#include "engine/text/byte_level.h"
#include "engine/text/tokenizer_json.h"
#include "kernels/base/status.h"
#include "tests/engine/text/text_data.h"
#include "tests/support/skip.h"

using namespace headwater;
using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

namespace {

Json small_json() {
  Json vocab = Json::object();
  for (int b = 0; b < 256; ++b) vocab[byte_level::character(static_cast<uint8_t>(b))] = b;
  vocab["ab"] = 256;
  return {{"added_tokens",
           {{{"id", 257}, {"content", "<s>"}, {"special", true}},
            {{"id", 258}, {"content", "<tool>"}, {"special", false}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Digits"}, {"individual_digits", true}},
              {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}}}}},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b"}}}}};
}

std::string error_of(const Json& tokenizer, const std::string& config = "") {
  try {
    make_tokenizer(load_tokenizer_json(tokenizer.dump(), config, "tokenizer.json"));
  } catch (const LoadError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("tokenizer.json: stages, specials, template, both spellings of merges", "[text][unit]") {
  Json json = small_json();
  const std::string config = R"({"eos_token": {"content": "<tool>"}, "unk_token": null})";
  for (const char* merges : {R"(["a b"])", R"([["a", "b"]])"}) {
    json["model"]["merges"] = Json::parse(merges);
    const Vocabulary v = load_tokenizer_json(json.dump(), config, "tokenizer.json");
    CHECK(v.merges == std::vector<std::string>{"a b"});
    CHECK(v.pre_steps.size() == 2);
    CHECK(v.bos == 257);
    CHECK(v.add_bos);
    CHECK(v.eos == 258);
    CHECK_FALSE(v.add_eos);
    const auto tokenizer = make_tokenizer(v);
    CHECK(tokenizer->encode("ab12<s><tool>", true, true) == Ids{257, 256, '1', '2', 257, 258});
    CHECK(tokenizer->encode("<s><tool>", false, false) == Ids{'<', 's', '>', 258});
  }
}

TEST_CASE("tokenizer.json: what it refuses, by name", "[text][unit]") {
  const auto check = [](const char* pointer, const Json& value, const std::string& part) {
    Json json = small_json();
    json[Json::json_pointer(pointer)] = value;
    INFO(pointer);
    CHECK_THAT(error_of(json), Catch::StartsWith("tokenizer.json") && Catch::Contains(part));
  };
  check("/model/type", "WordPiece", "expected BPE or Unigram");
  check("/model/type", "Unigram", "expected BPE, as the pre_tokenizer is ByteLevel");
  check("/model/dropout", 0.5, "dropout");
  check("/model/end_of_word_suffix", "</w>", "end_of_word_suffix");
  check("/model/merges", Json{{"a", "b", "c"}}, "merges");
  check("/model/merges", "a b", "merges");
  check("/model/vocab/ab", -1, "id of token");
  check("/model/vocab/ab", 1000000, "id of a token is 1000000");
  check("/model/vocab/ab", "x", "id of token");
  check("/normalizer", {{"type", "Nmt"}}, "Nmt");
  check("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "!"}}, "base64");
  check("/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "AAEA"}}, "charsmap");
  check("/pre_tokenizer", nullptr, "decoder");
  check("/pre_tokenizer/pretokenizers/0/type", "UnicodeScripts", "UnicodeScripts");
  check("/pre_tokenizer/pretokenizers/1/type", "Digits", "decoder");
  check("/decoder", {{"type", "WordPiece"}}, "WordPiece");
  const auto split = [](const char* regex) {
    return Json{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}};
  };
  check("/pre_tokenizer/pretokenizers/0", split("[a&&b]"), "&&");
  check("/pre_tokenizer/pretokenizers/0", split("[a[^b]]"), "a negated class inside a class");
  check("/pre_tokenizer/pretokenizers/0", split("(a|b){1,2}+"), "repeats an interval");
  check("/post_processor/type", "BertProcessing", "cls");
  check("/post_processor/single/0/SpecialToken/id", "<none>", "<none>");
  check("/added_tokens/0/id", 1 << 30, "id");
  CHECK_THAT(error_of(small_json(), R"({"bos_token": "<none>"})"), Catch::Contains("bos_token"));
  CHECK_THAT(error_of(Json::array()), Catch::Contains("tokenizer.json"));
}

TEST_CASE("tokenizer.json: every shape gives the ids of the tokenizers package", "[text][unit]") {
  const auto all = test::golden("tokenizers.json");
  for (const auto& [name, golden] : all.items()) {
    const auto tokenizer =
        make_tokenizer(load_tokenizer_json(golden["tokenizer"].dump(), "", "tokenizer.json"));
    for (const auto& item : golden["cases"]) {
      const std::string text = item[0];
      INFO(name << ": " << text);
      CHECK(tokenizer->encode(text, false, false) == item[1].get<Ids>());
      CHECK(tokenizer->encode(text, true, true) == item[2].get<Ids>());
    }
  }
}

TEST_CASE("tokenizer.json: needle-24m gives the ids of the tokenizers package", "[text][golden]") {
  const auto folder = test::shared_folder() / "models" / "needle-24m" / "hf";
  const auto json = test::read_text(folder / "tokenizer.json");
  if (!json) {
    testing::skip("no " + folder.string());
    return;
  }
  const auto config = test::read_text(folder / "tokenizer_config.json").value_or("");
  const auto tokenizer = make_tokenizer(load_tokenizer_json(*json, config, "tokenizer.json"));
  for (const auto& item : test::golden("needle_ids.json")) {
    const std::string text = item["text"];
    INFO(text);
    CHECK(tokenizer->encode(text, false, true) == item["special"].get<Ids>());
    CHECK(tokenizer->encode(text, false, false) == item["plain"].get<Ids>());
  }
  CHECK(tokenizer->encode("", true, false) == Ids{256});
}
