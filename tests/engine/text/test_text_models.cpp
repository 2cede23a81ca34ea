#include <algorithm>
#include <catch2/catch.hpp>
#include <ctime>
#include <map>
#include <random>

#include "engine/text/charsmap.h"
#include "engine/text/normalizer.h"
#include "engine/text/special_splitter.h"
#include "engine/text/tokenizer.h"
#include "engine/text/unicode.h"
#include "kernels/base/status.h"

using namespace headwater;
using Ids = std::vector<int32_t>;
using Kind = NormalizerStep::Kind;

namespace {

std::string normalized(std::vector<NormalizerStep> steps, std::string_view text) {
  return Normalizer(std::move(steps), "test").apply(text);
}

// Pieces with scores, after an unknown token.
Vocabulary scored(const std::string& model,
                  const std::vector<std::pair<std::string, double>>& pieces) {
  Vocabulary v;
  v.model = model;
  v.source = "test";
  v.tokens = {"<unk>"};
  v.kinds = {TokenKind::kUnknown};
  v.scores = {0};
  v.unknown = 0;
  v.fuse_unknown = true;
  for (const auto& [text, score] : pieces) {
    v.tokens.push_back(text);
    v.kinds.push_back(TokenKind::kNormal);
    v.scores.push_back(score);
  }
  return v;
}

std::string le32(uint32_t value) { return {reinterpret_cast<const char*>(&value), 4}; }

// A table with two entries: "A" -> "xy", "AB" -> "z".
std::string small_charsmap() {
  std::vector<uint32_t> units(2048);
  const auto leaf_unit = [](uint32_t label, uint32_t offset) {
    return label | 1U << 8 | offset << 10;
  };
  units[0] = 256U << 10;
  const uint32_t a = 256 ^ 'A';
  units[a] = leaf_unit('A', 512);
  units[a ^ 512] = 1U << 31 | 0;
  const uint32_t ab = (a ^ 512) ^ 'B';
  units[ab] = leaf_unit('B', 1024);
  units[ab ^ 1024] = 1U << 31 | 3;
  std::string out = le32(static_cast<uint32_t>(units.size() * 4));
  for (const uint32_t unit : units) out += le32(unit);
  return out + std::string("xy\0z\0", 5);
}

}  // namespace

TEST_CASE("Normalizer: each step", "[text][unit]") {
  CHECK(normalized({{.kind = Kind::kNfc}}, "e\u0301 x") == "\u00E9 x");
  CHECK(normalized({{.kind = Kind::kNfd}}, "\u00E9\uAC00") == "e\u0301\u1100\u1161");
  CHECK(normalized({{.kind = Kind::kNfkc}}, "\uFB01\u2460\u00BD") == "fi11\u20442");
  CHECK(normalized({{.kind = Kind::kNfkd}}, "\u212B") == "A\u030A");
  // Canonical order, and bytes that are not UTF-8 pass.
  CHECK(normalized({{.kind = Kind::kNfd}}, "a\u0301\u0323") == "a\u0323\u0301");
  CHECK(normalized({{.kind = Kind::kNfc}}, "e\xFF\u0301") == "e\xFF\u0301");
  CHECK(normalized({{.kind = Kind::kLowercase}}, "\u00C4B\u0130") == "\u00E4bi\u0307");
  CHECK(normalized({{.kind = Kind::kStripAccents}}, "a\u0301b") == "ab");
  CHECK(normalized({{.kind = Kind::kStrip, .left = true}}, "\u3000 a ") == "a ");
  CHECK(normalized({{.kind = Kind::kStrip, .right = true}}, " a\u00A0") == " a");
  CHECK(normalized({{.kind = Kind::kPrepend, .to = "_"}}, "a") == "_a");
  CHECK(normalized({{.kind = Kind::kPrepend, .to = "_"}}, "").empty());
  CHECK(normalized({{.kind = Kind::kReplace, .from = "aa", .to = "b"}}, "aaa") == "ba");
  CHECK(normalized({{.kind = Kind::kReplaceRegex, .from = " {2,}", .to = "_"}}, "a   b c") ==
        "a_b c");
}

TEST_CASE("Normalizer: SentencePiece's spaces", "[text][unit]") {
  NormalizerStep step{.kind = Kind::kSentencePiece, .to = "_"};
  step.add_prefix = step.merge_spaces = true;
  CHECK(normalized({step}, "  a  b ") == "_a_b");
  CHECK(normalized({step}, "   ").empty());
  step.merge_spaces = false;
  CHECK(normalized({step}, "a  b ") == "_a__b_");
  step.add_prefix = false;
  CHECK(normalized({step}, "a b") == "a_b");
  step.charsmap = small_charsmap();
  step.untouched = {"ABC"};
  CHECK(normalized({step}, "AAB ABC\xFF") == "xyz_ABC\uFFFD");
}

TEST_CASE("Charsmap: longest and shortest, and hostile tables", "[text][unit]") {
  const Charsmap map(small_charsmap(), "test");
  REQUIRE(map.longest("ABx"));
  CHECK(map.longest("ABx")->length == 2);
  CHECK(map.longest("ABx")->replacement == "z");
  CHECK(map.shortest("ABx")->replacement == "xy");
  CHECK_FALSE(map.longest("B"));
  CHECK_FALSE(map.longest(""));
  CHECK_THROWS_AS(Charsmap("abc", "test"), LoadError);
  CHECK_THROWS_AS(Charsmap(le32(400) + "abcd", "test"), LoadError);
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    std::string bytes = small_charsmap();
    for (int i = 0; i < 50; ++i)
      bytes[4 + random() % (bytes.size() - 4)] = static_cast<char>(random());
    const Charsmap broken(bytes, "test");
    for (const char* text : {"A", "AB", "zzz", "\xFF\xFE"}) broken.longest(text);
  }
}

TEST_CASE("Special tokens: leftmost first, or longest first", "[text][unit]") {
  SpecialSplitter splitter;
  splitter.add("ab", 1);
  splitter.add("bcd", 2);
  splitter.add("\n", 3);
  splitter.add("\n\n\n", 4);
  const auto ids = [&](std::string_view text, SpecialSplitter::Order order) {
    Ids out;
    for (const auto& match : splitter.find_all(text, order)) out.push_back(match.id);
    return out;
  };
  using Order = SpecialSplitter::Order;
  CHECK(ids("abcd", Order::kLeftmost) == Ids{1});
  CHECK(ids("abcd", Order::kLongest) == Ids{2});
  CHECK(ids("xab bcd", Order::kLongest) == Ids{1, 2});
  for (const Order order : {Order::kLeftmost, Order::kLongest}) {
    CHECK(ids(std::string(8, '\n'), order) == Ids{4, 4, 3, 3});
    CHECK(splitter.find_all(std::string(1 << 20, '\n'), order).size() == (1 << 20) / 3 + 1);
  }
}

TEST_CASE("SentencePiece BPE: best score first, leftmost of equals", "[text][unit]") {
  const std::vector<std::pair<std::string, double>> pieces = {{"a", -9},
                                                              {"b", -9},
                                                              {"ab", -2},
                                                              {"ba", -1},
                                                              {"aba", -3},
                                                              {"bb", -2},
                                                              {"\u00E9a", -1},
                                                              {"abab", -0.5}};
  const auto tokenizer = make_tokenizer(scored("spm", pieces));
  std::map<std::string, double> scores(pieces.begin(), pieces.end());
  // The definition: join the best pair that makes a token until there is none.
  const auto merged = [&](const std::vector<std::string>& characters) {
    std::vector<std::string> parts = characters;
    while (true) {
      double best = -1e9;
      size_t at = parts.size();
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto it = scores.find(parts[i] + parts[i + 1]);
        if (it != scores.end() && it->second > best) best = it->second, at = i;
      }
      if (at == parts.size()) return parts;
      parts[at] += parts[at + 1];
      parts.erase(parts.begin() + static_cast<ptrdiff_t>(at) + 1);
    }
  };
  std::mt19937 random(3);
  for (int round = 0; round < 400; ++round) {
    std::vector<std::string> characters(1 + random() % 60);
    std::string text;
    for (auto& c : characters)
      text += c = std::vector<std::string>{"a", "b", "\u00E9"}[random() % 3];
    Ids expected;
    for (const std::string& part : merged(characters)) {
      const int32_t id = tokenizer->find(part);
      if (id >= 0 || expected.empty() || expected.back() != 0) expected.push_back(std::max(id, 0));
    }
    INFO(text);
    CHECK(tokenizer->encode(text, false, false) == expected);
  }
}

TEST_CASE("Unigram: the best sum of scores", "[text][unit]") {
  const std::vector<std::pair<std::string, double>> pieces = {
      {"a", -2}, {"b", -2.5}, {"ab", -3}, {"abb", -6}, {"bab", -4.25}, {"\u4F60a", -1}};
  const auto tokenizer = make_tokenizer(scored("unigram", pieces));
  std::map<std::string, double> scores(pieces.begin(), pieces.end());
  const double unknown = -6 - 10;
  std::mt19937 random(8);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> characters(1 + random() % 12);
    for (auto& c : characters) {
      c = std::vector<std::string>{"a", "b", "\u4F60", "x"}[random() % 4];
    }
    // Best sum of every prefix, over all its segmentations.
    std::vector<double> best(characters.size() + 1, -1e9);
    best[0] = 0;
    for (size_t end = 1; end <= characters.size(); ++end) {
      std::string piece;
      for (size_t begin = end; begin-- > 0;) {
        piece = characters[begin] + piece;
        const auto it = scores.find(piece);
        if (it != scores.end()) best[end] = std::max(best[end], best[begin] + it->second);
        if (begin + 1 == end && !scores.contains(piece)) {
          best[end] = std::max(best[end], best[begin] + unknown);
        }
      }
    }
    std::string text;
    for (const auto& c : characters) text += c;
    INFO(text);
    double sum = 0;
    size_t known = 0;
    for (const int32_t id : tokenizer->encode(text, false, false)) {
      if (id == 0) continue;
      sum += scores.at(std::string(tokenizer->token_text(id)));
      known += tokenizer->token_text(id).size();
    }
    // A run of unknown characters is one token: those left over cost their share each.
    size_t unknown_characters = 0;
    size_t left = text.size() - known;
    for (const auto& c : characters) {
      if (c == "x") left -= 1, ++unknown_characters;
    }
    unknown_characters += left / 3;
    CHECK(sum + unknown * static_cast<double>(unknown_characters) ==
          Approx(best[characters.size()]));
  }
  CHECK(tokenizer->encode("xx\u4F60x", false, false) == Ids{0});
}

TEST_CASE("Characters without a token: their bytes, or the unknown token", "[text][unit]") {
  for (const char* model : {"spm", "unigram", "char-bpe"}) {
    Vocabulary v = scored(model, {{"a", -1}, {"<0xC3>", -1}, {"<0xA9>", -1}});
    v.kinds[2] = v.kinds[3] = TokenKind::kByte;
    v.byte_fallback = true;
    INFO(model);
    const auto tokenizer = make_tokenizer(v);
    CHECK(tokenizer->encode("a\u00E9", false, false) == Ids{1, 2, 3});
    CHECK(tokenizer->encode("xy\u4F60", false, false) == Ids{0});
    CHECK(tokenizer->encode("a\xC3", false, false) == Ids{1, 2});
    v.fuse_unknown = v.model == "unigram";
    CHECK(make_tokenizer(v)->encode("xy", false, false).size() == (v.fuse_unknown ? 1 : 2));
  }
}

TEST_CASE("encode: texts that no pre-tokenizer cuts take linear time", "[text][unit]") {
  const std::vector<std::pair<std::string, double>> pieces = {
      {"a", -5}, {"b", -5}, {"aa", -2}, {"ab", -3}, {"ba", -3.5}, {"aaaa", -1}, {"\u0301", -9}};
  // Processor time: other programs do not count.
  const auto cost = [](const Tokenizer& tokenizer, const std::string& text) {
    const std::clock_t begin = std::clock();
    CHECK_FALSE(tokenizer.encode(text, false, false).empty());
    return static_cast<double>(std::clock() - begin);
  };
  for (const char* model : {"spm", "unigram"}) {
    for (const char* unit : {"a", "ab", "x", "a\u0301\u0323"}) {
      Vocabulary v = scored(model, pieces);
      v.normalizer = {{.kind = Kind::kNfkc}};
      const auto tokenizer = make_tokenizer(std::move(v));
      std::string text;
      while (text.size() < (1 << 20)) text += unit;
      const std::string part = text.substr(0, text.size() / 16 / 5 * 5);
      INFO(model << " " << unit);
      // Sixteen times the bytes cost 16 times as much if linear, 256 times if quadratic.
      const double part_cost = cost(*tokenizer, part) + cost(*tokenizer, part);
      CHECK(cost(*tokenizer, text) < 64 * std::max(part_cost, CLOCKS_PER_SEC * 1e-3));
    }
  }
}
