#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/base/status.h"
#include "server/cli/text_tools.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_file.h"
#include "tests/support/tiny_model.h"

using namespace headwater;
using Catch::Contains;
using Json = nlohmann::json;

namespace {

constexpr const char* kMessages = R"({"messages": [{"role": "user", "content": "Hi"}]})";

std::string run(int (*command)(const std::vector<std::string>&, std::istream&, std::ostream&),
                const std::vector<std::string>& args,
                const std::string& input) {
  std::istringstream in(input);
  std::ostringstream out;
  CHECK(command(args, in, out) == 0);
  return out.str();
}

// A GGUF file with a vocabulary and nothing else.
std::string vocabulary_gguf() {
  testing::GgufWriter file;
  file.add_string("general.architecture", "llama");
  file.add_string("tokenizer.ggml.model", "llama");
  const std::vector<std::string> tokens = {
      "<unk>", "<s>", "</s>", "\u2581", "a", "\u2581a", "<0x62>"};
  const std::vector<int32_t> kinds = {2, 3, 3, 1, 1, 1, 6};
  file.add_strings("tokenizer.ggml.tokens", tokens);
  file.add_i32s("tokenizer.ggml.token_type", kinds);
  return file.bytes();
}

}  // namespace

TEST_CASE("tokenize: a vocabulary-only GGUF, a JSON list in and out", "[cli][unit]") {
  const testing::TempFolder folder;
  const std::string path = folder.add("vocab.gguf", vocabulary_gguf());
  const std::string requests =
      R"([{"text": "a ab"}, {"text": "a</s>", "add_special": true, "parse_special": true}, {"text": ""}])";
  CHECK(run(cli::tokenize, {path, "--json"}, requests) == "[[5,5,6],[1,5,2],[]]\n");
  CHECK(run(cli::tokenize, {path, "--add-special"}, "a") == "1\t\"<s>\"\n5\t\"\u2581a\"\n");
}

TEST_CASE("tokenize: what it refuses", "[cli][unit]") {
  const testing::TempFolder folder;
  const std::string path = folder.add("vocab.gguf", vocabulary_gguf());
  const auto refused = [&](const std::string& input) {
    std::istringstream in(input);
    std::ostringstream out;
    try {
      cli::tokenize({path, "--json"}, in, out);
    } catch (const LoadError& error) {
      CHECK(out.str().empty());
      return std::string(error.what());
    }
    return std::string("no error");
  };
  CHECK_THAT(refused("{"), Contains("no JSON"));
  CHECK_THAT(refused("{}"), Contains("a JSON list"));
  CHECK_THAT(refused(R"([{"text": 1}])"), Contains("request 0") && Contains("a string"));
  CHECK_THAT(refused(R"([{"text": "", "add_special": 1}])"), Contains("\"add_special\""));
  CHECK_THAT(refused(std::string(500, '[')), Contains("nested deeper"));
  std::istringstream in;
  std::ostringstream out;
  CHECK_THROWS_WITH(cli::tokenize({}, in, out), Contains("headwater tokenize MODEL"));
  CHECK_THROWS_WITH(cli::tokenize({"/nonesuch"}, in, out), Contains("does not exist"));
}

TEST_CASE("render: a template file, with the variables as given", "[cli][unit]") {
  const testing::TempFolder folder;
  const std::string path = folder.add(
      "t.jinja",
      "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}\n");
  CHECK(run(cli::render, {"--template", path, "--json"}, kMessages) == "user: Hi");
  const std::string date = folder.add("date.jinja", "{{ strftime_now('%Y') }}{{ z.b }}");
  CHECK(run(cli::render, {"--template", date, "--now", "0"}, R"({"z": {"b": [1, null]}})") ==
        "1970[1, None]");
}

TEST_CASE("render: a model's own template and tokens", "[cli][unit]") {
  const testing::TempFolder folder;
  const std::string path = folder.add("tiny.gguf", testing::tiny_gguf({}));
  CHECK_THAT(run(cli::render, {path}, kMessages), Contains("user\nHi"));
}

TEST_CASE("render: what it refuses", "[cli][unit]") {
  const testing::TempFolder folder;
  const auto refused = [&](const std::vector<std::string>& args, const std::string& input) {
    std::istringstream in(input);
    std::ostringstream out;
    try {
      cli::render(args, in, out);
    } catch (const std::exception& error) {
      CHECK(out.str().empty());
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const std::string raises = folder.add("r.jinja", "text{{ raise_exception('No tools') }}");
  const std::string broken = folder.add("b.jinja", "\n{% if %}");
  const std::string bare = folder.add("vocab.gguf", vocabulary_gguf());
  CHECK_THAT(refused({"--template", raises}, "{}"), Contains("No tools"));
  CHECK_THAT(refused({"--template", raises}, "[]"), Contains("a JSON object"));
  CHECK_THAT(refused({"--template", broken}, "{}"), Contains("line 2"));
  CHECK_THAT(refused({"--template", "/nonesuch"}, "{}"), Contains("cannot be read"));
  CHECK_THAT(refused({bare}, "{}"), Contains("has no chat template"));
  CHECK_THAT(refused({}, "{}"), Contains("a model or --template"));
  CHECK_THAT(refused({bare, "--template", raises}, "{}"), Contains("one of them"));
}

TEST_CASE("tokenize, render: the help shows how", "[cli][unit]") {
  CHECK_THAT(cli::tokenize_help(), Contains("headwater tokenize tokenizer.json --json"));
  CHECK_THAT(cli::render_help(), Contains("--template chat.jinja < conversation.json"));
}
