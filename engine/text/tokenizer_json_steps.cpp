#include "engine/text/tokenizer_json_steps.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/io/quote.h"
#include "engine/text/utf8.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

using Behavior = PreStep::Behavior;
using Kind = NormalizerStep::Kind;

// What ByteLevel cuts by when it says use_regex.
constexpr const char* kByteLevelRegex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kPunctuation = R"([\p{P}$+<=>^`|~])";
// Words as the regex crate has them, and runs of what is neither word nor space.
constexpr const char* kWords =
    R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D}\s]+)";

// Calls visit for the component, or for each of a Sequence.
template <typename Visit>
void each(const JsonObject& component, std::string_view list, const Visit& visit) {
  if (component.string("type") != "Sequence") {
    visit(component);
    return;
  }
  for (const JsonObject& item : component.objects(list)) each(item, list, visit);
}

std::string from_base64(const JsonObject& object, std::string_view key) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::string text = object.string(key);
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : std::string_view(text).substr(0, text.find_last_not_of('=') + 1)) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) refuse(object, key, "base64", std::string(1, c));
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xFF);
    }
  }
  return out;
}

struct Pattern {
  std::string text;
  bool is_regex;
};
Pattern read_pattern(const JsonObject& component) {
  const JsonObject pattern = component.object("pattern");
  if (pattern.has("Regex")) return {pattern.string("Regex"), true};
  return {pattern.string("String"), false};
}

Behavior read_behavior(const JsonObject& component, const std::string& name) {
  constexpr std::pair<std::string_view, Behavior> kTable[] = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
      {"Contiguous", Behavior::kContiguous}};
  for (const auto& [text, behavior] : kTable) {
    if (name == text) return behavior;
  }
  refuse(component, "behavior", "Isolated, Removed, MergedWith... or Contiguous", name);
}

PreStep cut(std::string regex, Behavior behavior) {
  return {.regex = std::move(regex), .behavior = behavior};
}

PreStep::Prefix read_scheme(const JsonObject& metaspace) {
  const bool legacy = metaspace.boolean_or("add_prefix_space", true);
  const std::string scheme = metaspace.string_or("prepend_scheme", legacy ? "always" : "never");
  if (scheme == "always") return PreStep::Prefix::kAlways;
  if (scheme == "first") return PreStep::Prefix::kFirst;
  if (scheme == "never") return PreStep::Prefix::kNone;
  refuse(metaspace, "prepend_scheme", "always, first or never", scheme);
}

}  // namespace

void refuse(const JsonObject& object,
            std::string_view key,
            std::string_view expected,
            std::string_view got) {
  throw LoadError(object.name() + ": \"" + std::string(key) + "\" is " + quote(got) +
                  ", expected " + std::string(expected));
}

void read_normalizer(const JsonObject& normalizer, Vocabulary& vocabulary) {
  constexpr std::pair<std::string_view, Kind> kPlain[] = {{"NFC", Kind::kNfc},
                                                          {"NFD", Kind::kNfd},
                                                          {"NFKC", Kind::kNfkc},
                                                          {"NFKD", Kind::kNfkd},
                                                          {"Lowercase", Kind::kLowercase},
                                                          {"StripAccents", Kind::kStripAccents}};
  each(normalizer, "normalizers", [&](const JsonObject& item) {
    const std::string type = item.string("type");
    for (const auto& [name, kind] : kPlain) {
      if (type == name) {
        vocabulary.normalizer.push_back({.kind = kind});
        return;
      }
    }
    NormalizerStep step{.kind = Kind::kStrip};
    if (type == "Strip") {
      step.left = item.boolean_or("strip_left", true);
      step.right = item.boolean_or("strip_right", true);
    } else if (type == "Prepend") {
      step.kind = Kind::kPrepend;
      step.to = item.string("prepend");
    } else if (type == "Replace") {
      const Pattern pattern = read_pattern(item);
      step.kind = pattern.is_regex ? Kind::kReplaceRegex : Kind::kReplace;
      step.from = pattern.text;
      step.to = item.string("content");
    } else if (type == "Precompiled") {
      step.kind = Kind::kCharsmap;
      step.charsmap = from_base64(item, "precompiled_charsmap");
      if (step.charsmap.empty()) return;
    } else {
      refuse(item,
             "type",
             "NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Prepend, Replace, Precompiled "
             "or a Sequence of them",
             type);
    }
    vocabulary.normalizer.push_back(std::move(step));
  });
}

bool read_pre_tokenizer(const JsonObject& pre_tokenizer, Vocabulary& vocabulary) {
  std::vector<PreStep>& steps = vocabulary.pre_steps;
  bool mapped = false;
  each(pre_tokenizer, "pretokenizers", [&](const JsonObject& item) {
    const std::string type = item.string("type");
    if (mapped) refuse(item, "type", "nothing after ByteLevel", type);
    if (type == "ByteLevel") {
      if (item.boolean_or("add_prefix_space", true)) {
        steps.push_back({.prefix = " ", .prefix_where = PreStep::Prefix::kAlways});
      }
      if (item.boolean_or("use_regex", true)) {
        steps.push_back(cut(kByteLevelRegex, Behavior::kIsolated));
      }
      mapped = true;
    } else if (type == "Digits") {
      const bool single = item.boolean_or("individual_digits", false);
      steps.push_back(cut(R"(\p{N})", single ? Behavior::kIsolated : Behavior::kContiguous));
    } else if (type == "Punctuation") {
      steps.push_back(
          cut(kPunctuation, read_behavior(item, item.string_or("behavior", "Isolated"))));
    } else if (type == "Whitespace") {
      steps.push_back(cut(kWords, Behavior::kRemoved));
      steps.back().invert = true;
    } else if (type == "WhitespaceSplit") {
      steps.push_back(cut(R"(\s)", Behavior::kRemoved));
    } else if (type == "BertPreTokenizer") {
      steps.push_back(cut(R"(\s)", Behavior::kRemoved));
      steps.push_back(cut(kPunctuation, Behavior::kIsolated));
    } else if (type == "CharDelimiterSplit") {
      steps.push_back(cut(regex_literal(item.string("delimiter")), Behavior::kRemoved));
    } else if (type == "Metaspace") {
      const std::string mark = item.string("replacement");
      steps.push_back({.space = mark, .prefix = mark, .prefix_where = read_scheme(item)});
      if (item.boolean_or("split", true)) {
        steps.push_back(cut(regex_literal(mark), Behavior::kMergedWithNext));
      }
    } else if (type == "Split") {
      const Pattern pattern = read_pattern(item);
      PreStep step;
      step.regex = pattern.is_regex ? pattern.text : regex_literal(pattern.text);
      step.syntax = pattern.is_regex ? Regex::Syntax::kOniguruma : Regex::Syntax::kPcre;
      step.behavior = read_behavior(item, item.string("behavior"));
      step.invert = item.boolean_or("invert", false);
      if (step.regex.empty()) refuse(item, "pattern", "a text or an expression", "");
      steps.push_back(std::move(step));
    } else {
      refuse(item,
             "type",
             "ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, "
             "BertPreTokenizer, CharDelimiterSplit, Metaspace or a Sequence of them",
             type);
    }
  });
  return mapped;
}

void read_decoder(const JsonObject& decoder, bool byte_level, JsonDecoder& out) {
  each(decoder, "decoders", [&](const JsonObject& item) {
    const std::string type = item.string("type");
    if (byte_level) {
      if (type != "ByteLevel" && type != "Fuse") {
        refuse(item, "type", "ByteLevel, as the pre_tokenizer is that", type);
      }
    } else if (type == "ByteFallback") {
      out.bytes = true;
    } else if (type == "Metaspace") {
      out.space = item.string("replacement");
      out.leading_space = read_scheme(item) != PreStep::Prefix::kNone;
    } else if (type == "Replace") {
      const Pattern pattern = read_pattern(item);
      if (pattern.is_regex || item.string("content") != " ") {
        refuse(item, "content", "a space, for a text", item.string("content"));
      }
      out.space = pattern.text;
    } else if (type == "Strip") {
      const int64_t start = item.integer("start", {0, 1});
      if (item.string("content") != " " || item.integer_or("stop", 0) != 0) {
        refuse(item, "content", "a space, at the start only", item.string("content"));
      }
      out.leading_space = start == 1;
    } else if (type != "Fuse") {
      refuse(item,
             "type",
             "Replace, ByteFallback, Fuse, Strip, Metaspace or a Sequence of them",
             type);
    }
  });
}

}  // namespace headwater
