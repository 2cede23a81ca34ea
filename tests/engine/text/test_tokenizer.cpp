#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <ctime>
#include <random>

#include "engine/text/byte_level.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"

using namespace headwater;
using Ids = std::vector<int32_t>;

namespace {

// The 256 bytes, then what the merges give, then specials.
Vocabulary small_vocabulary(const std::vector<std::string>& merges,
                            const std::vector<std::pair<std::string, TokenKind>>& specials = {}) {
  Vocabulary v;
  v.model = "bpe";
  v.pre_steps = pre_steps_of("gpt-2", "small.gguf");
  v.source = "small.gguf";
  for (int b = 0; b < 256; ++b) v.tokens.push_back(byte_level::character(static_cast<uint8_t>(b)));
  for (const std::string& merge : merges) {
    std::string joined = merge;
    joined.erase(joined.find(' ', 1), 1);
    v.tokens.push_back(joined);
  }
  v.kinds.assign(v.tokens.size(), TokenKind::kNormal);
  for (const auto& [text, kind] : specials) {
    v.tokens.push_back(text);
    v.kinds.push_back(kind);
  }
  v.merges = merges;
  return v;
}

std::string decode(const Tokenizer& tokenizer, const Ids& ids) {
  std::string out;
  for (const int32_t id : ids) out += tokenizer.token_bytes(id, true);
  return out;
}

std::vector<std::string> pieces(const std::string& pre, const std::string& text) {
  std::vector<std::string> out;
  PreTokenizer(pre_steps_of(pre, "test"), "test").split(text, true, [&](std::string_view piece) {
    out.emplace_back(piece);
  });
  return out;
}

std::string load_error(Vocabulary v) {
  try {
    make_tokenizer(std::move(v));
  } catch (const LoadError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("PreTokenizer: pieces by name", "[text][unit]") {
  using Pieces = std::vector<std::string>;
  CHECK(pieces("gpt-2", "It's  12 ok") == Pieces{"It", "'s", " ", " 12", " ok"});
  CHECK(pieces("smollm", "a 12") == Pieces{"a", " ", "1", "2"});
  CHECK(pieces("llama-bpe", "IT'S 12345\n\n x") ==
        Pieces{"IT", "'S", " ", "123", "45", "\n\n", " x"});
  CHECK(pieces("qwen2", "a12") == Pieces{"a", "1", "2"});
  CHECK(pieces("gpt-2", "x   ") == Pieces{"x", "   "});
  // U+180E is no white space in Unicode, U+2003 is.
  CHECK(pieces("gpt-2", "a\u180E\u2003b") == Pieces{"a", "\u180E", "\u2003", "b"});
  CHECK(pieces("falcon", "a 1234``b") == Pieces{"a", " ", "123", "4", "``", "b"});
  CHECK(pieces("tekken", "camelCase ABc") == Pieces{"camel", "Case", " ABc"});
  CHECK(pieces("gpt-4o", "It's 1234") == Pieces{"It's", " ", "123", "4"});
  CHECK(pieces("kimi-k2", "a\u4F60\u597Db") == Pieces{"a", "\u4F60\u597D", "b"});
  CHECK(pieces("deepseek-llm", "ab\n \u4F60c") == Pieces{"ab", "\n", " ", "\u4F60", "c"});
  CHECK_THROWS_WITH(pre_steps_of("nonesuch", "m.gguf"),
                    Catch::Contains("m.gguf: pre-tokenizer \"nonesuch\" is not known") &&
                        Catch::Contains("smollm"));
}

TEST_CASE("BPE: best rank first, leftmost of equals", "[text][unit]") {
  const auto tokenizer = make_tokenizer(small_vocabulary({"a b", "b c", "ab c", "a a"}));
  CHECK(tokenizer->encode("abc", false, false) == Ids{258});
  CHECK(tokenizer->encode("bc", false, false) == Ids{257});
  CHECK(tokenizer->encode("aaa", false, false) == Ids{259, 'a'});
  CHECK(tokenizer->encode("aabc", false, false) == Ids{'a', 258});
  CHECK(tokenizer->encode("", false, false).empty());
}

TEST_CASE("BPE: short and long pieces as the definition says", "[text][unit]") {
  const auto v = small_vocabulary({"b a", "a b", "ab ab", "ba b", "a a", "aa aa", "b b"});
  const auto tokenizer = make_tokenizer(v);
  // The definition: merge the leftmost of the best pairs until there is none.
  const auto merged = [&](const std::string& text) {
    std::vector<std::string> parts;
    for (const char c : text) parts.emplace_back(1, c);
    while (true) {
      size_t best = v.merges.size(), at = 0;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        for (size_t rank = 0; rank < best; ++rank) {
          if (v.merges[rank] == parts[i] + " " + parts[i + 1]) best = rank, at = i;
        }
      }
      if (best == v.merges.size()) return parts;
      parts[at] += parts[at + 1];
      parts.erase(parts.begin() + static_cast<ptrdiff_t>(at) + 1);
    }
  };
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::string text(1 + random() % 80, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    std::vector<std::string> got;
    for (const int32_t id : tokenizer->encode(text, false, false)) {
      got.push_back(tokenizer->token_bytes(id, false));
    }
    CHECK(got == merged(text));
  }
}

TEST_CASE("BPE: ignore_merges takes a whole piece that is a token", "[text][unit]") {
  Vocabulary v = small_vocabulary({"a b"});
  v.tokens.push_back("xyz");
  v.kinds.push_back(TokenKind::kNormal);
  CHECK(make_tokenizer(v)->encode("xyz", false, false) == Ids{'x', 'y', 'z'});
  v.ignore_merges = true;
  CHECK(make_tokenizer(v)->encode("xyz", false, false) == Ids{257});
}

TEST_CASE("Special tokens: parsed only when asked, user-defined always", "[text][unit]") {
  const auto tokenizer = make_tokenizer(small_vocabulary({},
                                                         {{"<|a|>", TokenKind::kControl},
                                                          {"<|a|>b", TokenKind::kControl},
                                                          {"<t>", TokenKind::kUserDefined}}));
  CHECK(tokenizer->encode("x<|a|>y", false, true) == Ids{'x', 256, 'y'});
  CHECK(tokenizer->encode("<|a|>b", false, true) == Ids{257});
  CHECK(tokenizer->encode("<t>", false, false) == Ids{258});
  const Ids plain = tokenizer->encode("<|a|>", false, false);
  CHECK(plain == Ids{'<', '|', 'a', '|', '>'});
  CHECK(tokenizer->is_control(256));
  CHECK_FALSE(tokenizer->is_control(258));
  CHECK(tokenizer->token_bytes(256, false).empty());
  CHECK(tokenizer->token_bytes(258, false) == "<t>");
}

TEST_CASE("Special tokens: no merge and no piece makes one of plain text", "[text][unit]") {
  Vocabulary v = small_vocabulary({"E O", "EO T"});
  v.kinds[257] = TokenKind::kControl;  // EOT
  CHECK(make_tokenizer(v)->encode("EOT", false, false) == Ids{256, 'T'});
  v.ignore_merges = true;
  CHECK(make_tokenizer(v)->encode("EOT", false, false) == Ids{256, 'T'});
  CHECK(make_tokenizer(v)->encode("EOT", false, true) == Ids{257});
}

TEST_CASE("encode: bos and eos as the vocabulary says", "[text][unit]") {
  Vocabulary v =
      small_vocabulary({}, {{"<s>", TokenKind::kControl}, {"</s>", TokenKind::kControl}});
  v.bos = 256;
  v.eos = 257;
  v.add_bos = v.add_eos = true;
  const auto tokenizer = make_tokenizer(v);
  CHECK(tokenizer->encode("a", true, false) == Ids{256, 'a', 257});
  CHECK(tokenizer->encode("a", false, false) == Ids{'a'});
  CHECK(tokenizer->encode("", true, false) == Ids{256, 257});
}

TEST_CASE("End of generation: eos, named ids and well-known texts", "[text][unit]") {
  Vocabulary v = small_vocabulary({},
                                  {{"<|end|>", TokenKind::kControl},
                                   {"<|im_end|>", TokenKind::kControl},
                                   {"<x>", TokenKind::kControl},
                                   {"</s>", TokenKind::kNormal}});
  v.eos = 258;
  v.eog = {7};
  CHECK(make_tokenizer(v)->eog_ids() == Ids{7, 256, 257, 258});
  for (const char* text : {"<|return|>", "<|call|>"}) {
    v.tokens.emplace_back(text);
    v.kinds.push_back(TokenKind::kControl);
  }
  CHECK(make_tokenizer(v)->eog_ids() == Ids{7, 257, 258, 260, 261});
}

TEST_CASE("encode: any bytes come back", "[text][unit]") {
  const auto tokenizer = make_tokenizer(small_vocabulary({"a b", "\u0120 a", "\u00C3 \u00A9"}));
  std::mt19937 random(11);
  for (int round = 0; round < 500; ++round) {
    std::string text(random() % 200, '\0');
    for (char& c : text) {
      c = static_cast<char>(random() % 3 ? "ab \xC3\xA9\n"[random() % 6] : random() % 256);
    }
    CHECK(decode(*tokenizer, tokenizer->encode(text, false, true)) == text);
  }
  // An invalid byte stands alone: no merge crosses it.
  CHECK(tokenizer->encode("\xC3\xC3\xA9", false, false) == Ids{0xC3, 258});
}

TEST_CASE("encode: a megabyte without a space takes linear time", "[text][unit]") {
  const auto tokenizer = make_tokenizer(small_vocabulary({"a a", "aa aa", "aaaa aaaa"}));
  // Processor time: other programs do not count.
  const auto cost = [&](const std::string& text) {
    const std::clock_t begin = std::clock();
    const Ids ids = tokenizer->encode(text, false, false);
    const auto ticks = static_cast<double>(std::clock() - begin);
    CHECK(decode(*tokenizer, ids) == text);
    return ticks;
  };
  const auto repeated = [](const char* unit, size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += unit;
    return text;
  };
  for (const char* unit : {"a", " ", "\u4F60", "=", "1", "A", "\n", "a1", " \n"}) {
    INFO(unit);
    // Sixteen times the bytes cost 16 times as much if linear, 256 times if quadratic; between them
    // lies what larger memory costs.
    const double part = cost(repeated(unit, 64 << 10)) + cost(repeated(unit, 64 << 10));
    CHECK(cost(repeated(unit, 1 << 20)) < 64 * std::max(part, CLOCKS_PER_SEC * 1e-3));
  }
}

TEST_CASE("make_tokenizer: what it refuses, by name", "[text][unit]") {
  const auto has = [](const std::string& part) { return Catch::Contains(part); };
  Vocabulary v = small_vocabulary({});
  v.model = "rwkv";
  CHECK_THAT(load_error(v), has("small.gguf: tokenizer model \"rwkv\" is not supported"));
  v = small_vocabulary({});
  v.model = "unigram";
  CHECK_THAT(load_error(v), has("0 token scores, expected one for each of 256"));
  v.scores.assign(256, -1);
  CHECK_THAT(load_error(v), has("needs an unknown token"));
  v.scores[3] = NAN;
  CHECK_THAT(load_error(v), has("no finite number"));
  v = small_vocabulary({});
  v.merges = {"a q\u0120"};
  CHECK_THAT(load_error(v), has("merge 0") && has("not a token"));
  v.merges = {"ab"};
  CHECK_THAT(load_error(v), has("not of the form"));
  v = small_vocabulary({});
  v.eos = 256;
  CHECK_THAT(load_error(v), has("eos token id 256, expected below 256"));
  v = small_vocabulary({});
  v.kinds.pop_back();
  CHECK_THAT(load_error(v), has("255 token types"));
  v = small_vocabulary({});
  v.add_bos = true;
  CHECK_THAT(load_error(v), has("add_bos"));
  v = small_vocabulary({});
  v.pre_steps = {{.regex = "(unclosed"}};
  CHECK_THAT(load_error(v), has("does not compile"));
  v = small_vocabulary({});
  v.tokens.clear();
  CHECK_THAT(load_error(v), has("vocabulary of 0 tokens"));
}
