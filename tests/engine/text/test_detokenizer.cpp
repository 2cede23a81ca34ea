#include <algorithm>
#include <catch2/catch.hpp>
#include <random>

#include "engine/text/byte_level.h"
#include "engine/text/detokenizer.h"
#include "engine/text/utf8.h"

using namespace headwater;

namespace {

// Ids 0 to 255 are the bytes, 256 is <|end|>.
std::unique_ptr<Tokenizer> byte_tokenizer() {
  Vocabulary v;
  v.model = "bpe";
  v.source = "test";
  for (int b = 0; b < 256; ++b) v.tokens.push_back(byte_level::character(static_cast<uint8_t>(b)));
  v.kinds.assign(256, TokenKind::kNormal);
  v.tokens.push_back("<|end|>");
  v.kinds.push_back(TokenKind::kControl);
  return make_tokenizer(std::move(v));
}

std::string detokenize(const Tokenizer& tokenizer, const std::string& bytes) {
  Detokenizer detokenizer(tokenizer);
  std::string out;
  for (const char byte : bytes) {
    const std::string part = detokenizer.push(static_cast<uint8_t>(byte));
    CHECK(utf8::sanitize(part) == part);
    out += part;
  }
  return out + detokenizer.flush();
}

struct Stopped {
  std::string shown;
  std::optional<std::string> matched;
};
Stopped stop(StopMatcher matcher, const std::vector<std::string>& parts) {
  Stopped out;
  for (const auto& part : parts) out.shown += matcher.push(part);
  out.shown += matcher.flush();
  out.matched = matcher.matched();
  return out;
}

}  // namespace

TEST_CASE("Detokenizer: invalid bytes as Python's errors=\"replace\"", "[text][unit]") {
  const auto tokenizer = byte_tokenizer();
  const std::string r = "\uFFFD";
  // Left: bytes; right: bytes.decode("utf-8", "replace").
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"abc", "abc"},
      {"\xE4\xBD\xA0", "\u4F60"},
      {"\xF0\x9F\x98\x80!", "\U0001F600!"},
      {"\xE4\xBD", r},
      {"\xE4\xBDx", r + "x"},
      {"\x80", r},
      {"\xC0\xAF", r + r},
      {"\xE0\x80\xAF", r + r + r},
      {"\xED\xA0\x80", r + r + r},
      {"\xF0\x9F\x98", r},
      {"\xF0\x9F\xE4\xBD\xA0", r + "\u4F60"},
      {"\xF4\x90\x80\x80", r + r + r + r},
      {"\xF8\x88\x80\x80", r + r + r + r},
      {"\xC3\xC3\xA9", r + "\u00E9"},
      {"\xE4\xE4\xBD\xA0\xFF", r + "\u4F60" + r},
  };
  for (const auto& [bytes, text] : cases) CHECK(detokenize(*tokenizer, bytes) == text);
}

TEST_CASE("Detokenizer: a character is shown with its last byte, and not before", "[text][unit]") {
  const auto tokenizer = byte_tokenizer();
  Detokenizer detokenizer(*tokenizer);
  CHECK(detokenizer.push(0xF0).empty());
  CHECK(detokenizer.push(0x9F).empty());
  CHECK(detokenizer.push(0x98).empty());
  CHECK(detokenizer.push(0x80) == "\U0001F600");
  CHECK(detokenizer.flush().empty());
}

TEST_CASE("Detokenizer: control tokens are text only when asked for", "[text][unit]") {
  const auto tokenizer = byte_tokenizer();
  CHECK(Detokenizer(*tokenizer).push(256).empty());
  CHECK(Detokenizer(*tokenizer, false).push(256) == "<|end|>");
  CHECK(Detokenizer(*tokenizer).push(-1).empty());
  CHECK(Detokenizer(*tokenizer).push(1 << 30).empty());
}

TEST_CASE("StopMatcher: across borders, earliest completed, longest of those", "[text][unit]") {
  const auto check = [](std::vector<std::string> stops,
                        const std::vector<std::string>& parts,
                        const std::string& shown,
                        std::optional<std::string> matched) {
    const Stopped out = stop(StopMatcher(std::move(stops)), parts);
    CHECK(out.shown == shown);
    CHECK(out.matched == matched);
  };
  check({"END"}, {"abE", "N", "Dxyz"}, "ab", "END");
  check({"END"}, {"abE", "N", "x"}, "abENx", std::nullopt);
  check({"END"}, {"abEN"}, "abEN", std::nullopt);
  check({"\n\n"}, {"a\n", "b\n", "\nc"}, "a\nb", "\n\n");
  check({"abcd", "bc"}, {"xabcd"}, "xa", "bc");
  check({"bc", "abc"}, {"xabc"}, "x", "abc");
  check({"aab"}, {"aa", "ab"}, "a", "aab");
  check({""}, {"abc"}, "abc", std::nullopt);
  check({}, {"abc"}, "abc", std::nullopt);
  CHECK(stop(StopMatcher({"END"}, true), {"aEN", "Db"}).shown == "aEND");

  StopMatcher matcher({"stop"});
  CHECK(matcher.push("a s") == "a ");
  CHECK(matcher.push("t") == "");
  CHECK(matcher.push("a") == "sta");
}

TEST_CASE("StopMatcher: how the text is cut changes nothing", "[text][unit]") {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    const auto word = [&](size_t max) {
      std::string s(1 + random() % max, 'a');
      for (char& c : s) c = static_cast<char>('a' + random() % 2);
      return s;
    };
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 3; ++i) stops.push_back(word(5));
    const std::string text = word(30);
    std::vector<std::string> parts;
    for (size_t pos = 0; pos < text.size(); pos += parts.back().size()) {
      parts.push_back(text.substr(pos, 1 + random() % 4));
    }
    const Stopped whole = stop(StopMatcher(stops), {text}), cut = stop(StopMatcher(stops), parts);
    INFO(text);
    CHECK(whole.shown == cut.shown);
    CHECK(whole.matched == cut.matched);
    const bool contains = std::ranges::any_of(
        stops, [&](const auto& s) { return text.find(s) != std::string::npos; });
    CHECK(contains == whole.matched.has_value());
  }
}

TEST_CASE("Detokenizer: a leading space that encoding put there", "[text][unit]") {
  Vocabulary v;
  v.model = "spm";
  v.source = "test";
  v.tokens = {"<unk>", "<s>", "\u2581", "a", "\u2581a", "<0xC3>", "<0xA9>"};
  v.kinds = {TokenKind::kUnknown,
             TokenKind::kControl,
             TokenKind::kNormal,
             TokenKind::kNormal,
             TokenKind::kNormal,
             TokenKind::kByte,
             TokenKind::kByte};
  v.scores = {0, 0, -3, -2, -1, 0, 0};
  v.normalizer = {{.kind = NormalizerStep::Kind::kPrepend, .to = "\u2581"},
                  {.kind = NormalizerStep::Kind::kReplace, .from = " ", .to = "\u2581"}};
  v.space = "\u2581";
  v.byte_fallback = v.leading_space = true;
  v.unknown = 0;
  const auto tokenizer = make_tokenizer(std::move(v));
  const auto decode = [&](const std::vector<int32_t>& ids, bool at_start) {
    Detokenizer detokenizer(*tokenizer, /*skip_special=*/true, at_start);
    std::string out;
    for (const int32_t id : ids) out += detokenizer.push(id);
    return out + detokenizer.flush();
  };
  for (const std::string text : {"a a", " a", "", " ", "\u00E9a", "  a"}) {
    INFO(text);
    const std::vector<int32_t> ids = tokenizer->encode(text, false, false);
    CHECK(decode(ids, true) == text);
    CHECK(decode(ids, false) == (text.empty() ? "" : " " + text));
  }
  CHECK(decode({1, 4}, true) == "a");
  CHECK(decode({5}, true) == "\uFFFD");
}
