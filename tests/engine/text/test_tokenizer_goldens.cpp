#include <catch2/catch.hpp>
#include <cstdio>
#include <sstream>

#include "engine/io/gguf.h"
#include "engine/io/mapped_file.h"
#include "engine/model/vocabulary_gguf.h"
#include "engine/text/detokenizer.h"
#include "engine/text/tokenizer_json.h"
#include "engine/text/utf8.h"
#include "tests/engine/text/text_data.h"
#include "tests/support/skip.h"

using namespace headwater;
using Ids = std::vector<int32_t>;

namespace {

std::unique_ptr<Tokenizer> tokenizer_of(std::span<const std::byte> gguf, const std::string& name) {
  return make_tokenizer(read_gguf_vocabulary(GgufFile::parse(gguf, name)));
}

void check_ids(const Tokenizer& tokenizer, const std::string& golden) {
  for (const auto& item : test::golden(golden)) {
    const std::string text = item["text"];
    INFO(text);
    const Ids ids = tokenizer.encode(text, false, true);
    CHECK(ids == item["special"].get<Ids>());
    CHECK(tokenizer.encode(text, false, false) == item["plain"].get<Ids>());
    Detokenizer detokenizer(tokenizer, false);
    std::string decoded;
    for (const int32_t id : ids) {
      const std::string part = detokenizer.push(id);
      CHECK(utf8::sanitize(part) == part);
      decoded += part;
    }
    CHECK(decoded + detokenizer.flush() == text);
  }
}

std::optional<std::string> unpacked(const std::filesystem::path& gz) {
  if (!std::filesystem::exists(gz)) return std::nullopt;
  std::FILE* pipe = popen(("gzip -dc '" + gz.string() + "'").c_str(), "r");
  REQUIRE(pipe);
  std::string out;
  std::vector<char> buffer(1 << 20);
  while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    out.append(buffer.data(), n);
  }
  REQUIRE(pclose(pipe) == 0);
  return out;
}

}  // namespace

TEST_CASE("Tokenizer: SmolLM2's ids as the tokenizers package", "[text][golden]") {
  const auto path = test::smollm2_file();
  if (!std::filesystem::exists(path)) {
    testing::skip("no " + path.string());
    return;
  }
  const MappedFile file(path.string());
  const auto tokenizer = tokenizer_of(file.bytes(), path.filename().string());
  check_ids(*tokenizer, "smollm2_ids.json");
  CHECK(tokenizer->eog_ids() == Ids{0, 2});
}

TEST_CASE("Tokenizer: needle-24m's GGUF gives the ids of its tokenizer.json", "[text][golden]") {
  const auto path = test::shared_folder() / "models" / "needle-24m" / "needle-q8_0.gguf";
  if (!std::filesystem::exists(path)) {
    testing::skip("no " + path.string());
    return;
  }
  const MappedFile file(path.string());
  check_ids(*tokenizer_of(file.bytes(), path.filename().string()), "needle_ids.json");
}

TEST_CASE("Tokenizer: published vocabularies give llama.cpp's ids", "[text][golden]") {
  const auto folder = test::shared_folder() / "data" / "vocabs";
  for (const std::string name :
       {"gpt-2", "starcoder", "deepseek-coder", "falcon", "llama-spm", "phi-3"}) {
    const auto gguf = unpacked(folder / (name + ".gguf.gz"));
    if (!gguf) {
      testing::skip("no " + name + " in " + folder.string());
      continue;
    }
    const auto tokenizer = tokenizer_of(std::as_bytes(std::span(*gguf)), name);
    const std::string inputs = test::read_text(folder / (name + ".inp")).value();
    std::istringstream outputs(test::read_text(folder / (name + ".out")).value());
    const std::string border = "\n__ggml_vocab_test__\n";
    int num_texts = 0;
    for (size_t pos = 0; pos <= inputs.size(); ++num_texts) {
      const size_t end = std::min(inputs.find(border, pos), inputs.size());
      std::string line;
      if (!std::getline(outputs, line)) break;
      std::istringstream numbers(line);
      Ids expected;
      for (int32_t id; numbers >> id;) expected.push_back(id);
      INFO(name << ": " << inputs.substr(pos, end - pos));
      CHECK(tokenizer->encode(inputs.substr(pos, end - pos), false, false) == expected);
      pos = end + border.size();
    }
    CHECK(num_texts > 30);
  }
}

TEST_CASE("Tokenizer: a published tokenizer.json loads and decodes what it encodes",
          "[text][golden]") {
  const auto folder = test::shared_folder() / "data" / "tokenizers" / "llama3";
  const auto json = unpacked(folder / "tokenizer.json.gz");
  if (!json) {
    testing::skip("no " + folder.string());
    return;
  }
  const auto config = unpacked(folder / "tokenizer_config.json.gz").value();
  const auto tokenizer = make_tokenizer(load_tokenizer_json(*json, config, "tokenizer.json"));
  CHECK(tokenizer->encode("Hello world", false, false) == Ids{9906, 1917});
  for (const auto& item : test::golden("smollm2_ids.json")) {
    std::string decoded;
    for (const int32_t id : tokenizer->encode(item["text"].get<std::string>(), false, false)) {
      decoded += tokenizer->token_bytes(id, true);
    }
    CHECK(decoded == item["text"].get<std::string>());
  }
}
