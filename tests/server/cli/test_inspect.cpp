#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

#include "server/cli/inspect.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_file.h"
#include "tests/support/tiny_model.h"

using namespace headwater;
using Catch::Contains;
using Json = nlohmann::json;

namespace {

struct Output {
  int code;
  std::string text;
};

Output run(const std::string& path, bool json) {
  std::ostringstream out;
  const int code = cli::inspect(path, json, out);
  return {code, out.str()};
}

// The bytes with one text in place of another of the same length.
std::string with(std::string bytes, const std::string& old_text, const std::string& new_text) {
  REQUIRE(old_text.size() == new_text.size());
  const size_t at = bytes.find(old_text);
  REQUIRE(at != std::string::npos);
  return bytes.replace(at, old_text.size(), new_text);
}

}  // namespace

TEST_CASE("inspect: a model that can be served, as JSON", "[cli][unit]") {
  const testing::TempFolder folder;
  testing::TinyModelOptions options;
  options.format = QuantFormat::kQ8_0;
  const std::string bytes = testing::tiny_gguf(options);
  const std::string path = folder.add("tiny.gguf", bytes);
  const Output output = run(path, true);
  CHECK(output.code == 0);
  const Json report = Json::parse(output.text);
  CHECK(report["path"] == path);
  CHECK(report["container"] == "GGUF version 3");
  CHECK(report["file_bytes"] == bytes.size());
  CHECK(report["refused"] == Json::array());
  CHECK(report["has_tokenizer"] == true);
  CHECK(report["has_chat_template"] == true);
  CHECK(report["metadata"]["llama.context_length"] == options.max_positions);
  CHECK(report["metadata"]["tokenizer.ggml.tokens"] ==
        std::to_string(testing::kTinyVocabSize) + " x string");

  const Json& model = report["model"];
  CHECK(model["architecture"] == "llama");
  CHECK(model["layers"] == options.num_layers);
  CHECK(model["hidden_dim"] == options.hidden_dim);
  CHECK(model["query_heads"] == options.num_heads);
  CHECK(model["kv_heads"] == options.num_kv_heads);
  CHECK(model["head_dim"] == options.head_dim);
  CHECK(model["vocab_size"] == testing::kTinyVocabSize);
  CHECK(model["trained_context_tokens"] == options.max_positions);
  // K and V of two bytes: 2 * 2 * 2 layers * 2 heads * 32
  CHECK(model["kv_bytes_per_token_f16"] == 512);
  CHECK(model["kv_bytes_held_f16"] == Json{{"2048", 2048 * 512}});  // trained for 4096 tokens
  CHECK_FALSE(model.contains("window_layers"));

  const Json& tokenizer = report["tokenizer"];
  CHECK(tokenizer["kind"] == "bpe");
  CHECK(tokenizer["pre"] == "gpt-2");
  CHECK(tokenizer["tokens"] == testing::kTinyVocabSize);
  CHECK(tokenizer["bos"] == testing::kTinyBos);
  CHECK(tokenizer["round_trip"] == true);
  CHECK(tokenizer["probe_ids"].size() > 10);
  CHECK(tokenizer["eos_token_ids"] == Json::array({testing::kTinyEos, testing::kTinyImEnd}));
  const Json& chat = report["chat_template"];
  CHECK(chat["renders"] == true);
  CHECK(chat["takes_system_message"] == true);
  CHECK(chat["probe"] ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
  CHECK(report["warnings"] == Json::array());

  int64_t num_tensors = 0, num_quantised = 0;
  for (const Json& type : report["types"]) {
    num_tensors += type["tensors"].get<int64_t>();
    CHECK(type["supported"] == true);
    if (type["type"] == "Q8_0") num_quantised = type["tensors"];
  }
  CHECK(num_quantised == 7 * options.num_layers);
  CHECK(report["tensors"].size() == static_cast<size_t>(num_tensors));
  for (const Json& tensor : report["tensors"]) {
    if (tensor["name"] != "blk.1.ffn_down.weight") continue;
    CHECK(tensor["type"] == "Q8_0");
    CHECK(tensor["bytes"] == options.hidden_dim * options.ffn_dim / 32 * 34);
  }
}

TEST_CASE("inspect: as text, with a file's control characters kept off the terminal",
          "[cli][unit]") {
  const testing::TempFolder folder;
  const std::string hostile = with(testing::tiny_gguf(), "tiny", "\x1b[7m");
  const Output output = run(folder.add("tiny.gguf", hostile), false);
  CHECK(output.code == 0);
  CHECK_THAT(output.text, Contains("GGUF version 3"));
  CHECK_THAT(output.text, Contains("kv_bytes_per_token_f16"));
  CHECK_THAT(output.text, Contains("blk.0.attn_q.weight"));
  CHECK_THAT(output.text, Contains("tokenizer: present"));
  CHECK_THAT(output.text, Contains("This model can be served."));
  CHECK(output.text.find('\x1b') == std::string::npos);
}

TEST_CASE("inspect: what would be refused is shown with the reason", "[cli][unit]") {
  const testing::TempFolder folder;
  const std::string bytes = testing::tiny_gguf();

  // readable, but of an architecture that is not there
  const std::string other = folder.add(
      "other.gguf", with(bytes, testing::gguf_string("llama"), testing::gguf_string("lemma")));
  const Output refused = run(other, true);
  CHECK(refused.code == 1);
  const Json report = Json::parse(refused.text);
  CHECK(report["metadata"]["general.architecture"] == "lemma");
  REQUIRE(report["refused"].size() == 1);
  CHECK_THAT(report["refused"][0].get<std::string>(), Contains("lemma") && Contains("other.gguf"));
  CHECK_FALSE(report.contains("model"));
  CHECK_THAT(
      run(other, false).text,
      Contains("This model would be refused:") && Contains("lemma") && !Contains("can be served"));

  // a file cut short
  const std::string cut = folder.add("cut.gguf", bytes.substr(0, bytes.size() / 2));
  const Output broken = run(cut, true);
  CHECK(broken.code == 1);
  const Json broken_report = Json::parse(broken.text);
  REQUIRE(broken_report["refused"].size() == 1);
  CHECK_THAT(broken_report["refused"][0].get<std::string>(), Contains("cut.gguf"));

  // cut before the end of the metadata: one reason, not one for every key that was not reached
  const std::string header = folder.add("header.gguf", bytes.substr(0, 1000));
  const Json header_report = Json::parse(run(header, true).text);
  REQUIRE(header_report["refused"].size() == 1);
  CHECK_THAT(header_report["refused"][0].get<std::string>(), Contains("bytes are missing"));
  CHECK(header_report["metadata"]["general.architecture"] == "llama");

  // nothing there, and a folder without a model
  CHECK(run((folder.path() / "nowhere.gguf").string(), true).code == 1);
  std::filesystem::create_directory(folder.path() / "empty");
  const Output empty = run((folder.path() / "empty").string(), false);
  CHECK(empty.code == 1);
  CHECK_THAT(empty.text, Contains("config.json"));
}

TEST_CASE("inspect: a model with windows holds what they see", "[cli][unit]") {
  const testing::TempFolder folder;
  testing::TinyModelOptions options;
  options.max_positions = 16384;
  const std::string bytes =
      testing::with_u32(testing::tiny_gguf(options), "llama.attention.sliding_window", 1024);
  const Json model = Json::parse(run(folder.add("window.gguf", bytes), true).text)["model"];
  CHECK(model["window_tokens"] == 1024);
  CHECK(model["window_layers"] == options.num_layers);
  // The next token sees 1,023 before it and itself, whole pages of 16 tokens.
  CHECK(model["kv_bytes_held_f16"]["2048"] == 1024 * 512);
  CHECK(model["kv_bytes_held_f16"]["8192"] == 1024 * 512);
}

TEST_CASE("inspect: several reasons at once", "[cli][unit]") {
  const testing::TempFolder folder;
  testing::TinyModelOptions options;
  options.format = QuantFormat::kQ4_0;
  std::string bytes = testing::tiny_gguf(options);
  // an unknown type id behind name, number of dimensions and two sizes
  const std::string name = testing::gguf_string("blk.1.ffn_up.weight");
  const size_t type_at = bytes.find(name) + name.size() + 4 + 2 * 8;
  REQUIRE(bytes[type_at] == 2);
  bytes[type_at] = 43;
  bytes = with(bytes, testing::gguf_string("gpt-2"), testing::gguf_string("gpt-x"));
  bytes = with(bytes, "{% endfor %}", "{% endfro %}");
  const Output output = run(folder.add("three.gguf", bytes), true);
  CHECK(output.code == 1);
  const Json report = Json::parse(output.text);
  const std::string refused = report["refused"].dump();
  CHECK_THAT(refused, Contains("blk.1.ffn_up.weight") && Contains("type id 43"));
  CHECK_THAT(refused, Contains("gpt-x"));
  CHECK_THAT(refused, Contains("endfro"));
  CHECK(report["model"]["layers"] == options.num_layers);
  CHECK(report["refused"].size() == 3);
  CHECK(report["tensors"].size() == 21);
  CHECK_FALSE(report.contains("chat_template"));
}

TEST_CASE("inspect: the parts of a split model, one missing and one cut", "[cli][unit]") {
  const testing::TempFolder folder;
  const std::vector<std::string> parts = testing::split_gguf(testing::tiny_gguf(), 3);
  const auto name = [](int i) { return "m-0000" + std::to_string(i) + "-of-00003.gguf"; };
  const std::string path = folder.add(name(1), parts[0]);
  folder.add(name(2), parts[1]);
  folder.add(name(3), parts[2]);
  const Json whole = Json::parse(run(path, true).text);
  CHECK(whole["refused"] == Json::array());
  CHECK(whole["files"].size() == 3);
  CHECK(whole["tensors"].size() == 21);

  folder.add(name(2), parts[1].substr(0, parts[1].size() - 100));
  std::filesystem::remove(folder.path() / name(3));
  const Output output = run(path, true);
  CHECK(output.code == 1);
  const std::string refused = Json::parse(output.text)["refused"].dump();
  CHECK_THAT(refused, Contains("not in its folder") && Contains(name(3)));
  CHECK_THAT(refused,
             Contains(name(2) + ": the tensors end at byte") && Contains("100 bytes are missing"));
}

TEST_CASE("inspect: what a chat template and a tokenizer do with a probe", "[cli][unit]") {
  const testing::TempFolder folder;
  const std::string bytes = testing::tiny_gguf();
  const std::string old_text = "{{ message['content'] }}";
  const std::string new_text = "{{raise_exception('no')}}";
  const std::string refuses = with(bytes, old_text + "<", new_text);
  const Output output = run(folder.add("refuses.gguf", refuses), true);
  CHECK(output.code == 0);
  const Json report = Json::parse(output.text);
  CHECK(report["chat_template"]["renders"] == false);
  CHECK(report["chat_template"]["takes_system_message"] == false);
  REQUIRE(report["warnings"].size() == 1);
  CHECK_THAT(report["warnings"][0].get<std::string>(), Contains("does not render"));
}

TEST_CASE("inspect: takes one model and no unknown flag", "[cli][unit]") {
  CHECK_THROWS_WITH(cli::run_inspect({}), Contains("inspect takes one model"));
  CHECK_THROWS_WITH(cli::run_inspect({"a.gguf", "b.gguf"}), Contains("got 2"));
  CHECK_THROWS_WITH(cli::run_inspect({"a.gguf", "--jason"}), Contains("jason"));
  CHECK_THAT(cli::inspect_help(), Contains("--json"));
}
