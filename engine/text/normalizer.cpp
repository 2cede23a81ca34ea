#include "engine/text/normalizer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/text/special_splitter.h"
#include "engine/text/unicode.h"
#include "engine/text/utf8.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

using Kind = NormalizerStep::Kind;

constexpr size_t kMaxSteps = 32;

template <typename Map>
std::string map_characters(std::string_view text, const Map& map) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const utf8::Step step = utf8::next(text, pos);
    if (step.validity == utf8::Validity::kValid) {
      map(out, step.code_point, text.substr(pos, step.length));
    } else {
      out += text.substr(pos, step.length);
    }
    pos += step.length;
  }
  return out;
}

// Applies f to the stretches that are valid UTF-8; the bytes between them pass.
template <typename F>
std::string map_valid(std::string_view text, const F& f) {
  std::string out;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const utf8::Step step = utf8::next(text, pos);
    pos += step.length;
    if (step.validity == utf8::Validity::kValid) continue;
    out += f(text.substr(begin, pos - step.length - begin));
    out += text.substr(pos - step.length, step.length);
    begin = pos;
  }
  return out + f(text.substr(begin));
}

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  if (from.empty()) return std::string(text);
  std::string out;
  out.reserve(text.size());
  size_t pos = 0;
  for (size_t hit; (hit = text.find(from, pos)) != std::string_view::npos;) {
    out.append(text.substr(pos, hit - pos)).append(to);
    pos = hit + from.size();
  }
  return std::move(out.append(text.substr(pos)));
}

std::string regex_replaced(const Regex& regex, std::string_view text, std::string_view to) {
  const Regex::Matcher matcher(regex, text.size());
  std::string out;
  size_t pos = 0;
  bool after_match = false;
  while (const auto match = matcher.find(text, pos, after_match)) {
    out.append(text.substr(pos, match->first - pos)).append(to);
    pos = match->second;
    after_match = true;
  }
  return std::move(out.append(text.substr(pos)));
}

std::string_view stripped(std::string_view text, bool left, bool right) {
  const auto space_at = [&](size_t pos) {
    return unicode::is_white_space(utf8::next(text, pos).code_point);
  };
  while (left && !text.empty() && space_at(0)) text.remove_prefix(utf8::next(text, 0).length);
  while (right && !text.empty()) {
    size_t last = text.size() - 1;
    while (last > 0 && (static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
    if (!space_at(last)) break;
    text = text.substr(0, last);
  }
  return text;
}

// The first entry of the table that begins a cluster, or else each of its characters, stands for
// the whole of it: so the `tokenizers` package reads the table.
std::string map_clusters(const Charsmap& charsmap, std::string_view text) {
  constexpr size_t kLongestCluster = 5;
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const size_t end = unicode::grapheme_end(text, pos);
    const std::string_view cluster = text.substr(pos, end - pos);
    if (cluster.size() <= kLongestCluster) {
      if (const auto match = charsmap.shortest(cluster)) {
        out += match->replacement;
        pos = end;
        continue;
      }
    }
    while (pos < end) {
      const std::string_view character = text.substr(pos, utf8::next(text, pos).length);
      const auto match = charsmap.shortest(character);
      out += match ? match->replacement : character;
      pos += character.size();
    }
  }
  return out;
}

}  // namespace

struct Normalizer::Step {
  NormalizerStep rule;
  std::optional<Charsmap> charsmap;
  std::optional<Regex> regex;
  SpecialSplitter untouched;

  std::string sentence_piece(std::string_view text) const;
  std::string apply(std::string_view text) const;
};

std::string Normalizer::Step::sentence_piece(std::string_view text) const {
  const std::string& space = rule.to;
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  bool in_word = false, prefixed = false;
  const auto add = [&](std::string_view part) {
    for (const char c : part) {
      if (c == ' ') {
        in_word = false;
        if (!rule.merge_spaces) out += space;
        continue;
      }
      // Merging defers a run's space to the word after it.
      if (!std::exchange(in_word, true) && ((rule.add_prefix && !prefixed) ||
                                            (rule.merge_spaces && (rule.add_prefix || prefixed)))) {
        out += space;
      }
      prefixed = true;
      out += c;
    }
  };
  for (size_t pos = 0; pos < text.size();) {
    const std::string_view rest = text.substr(pos);
    if (const auto match = untouched.match_at(text, pos)) {
      add(rest.substr(0, match->length));
      pos += match->length;
    } else if (const auto mapped = charsmap ? charsmap->longest(rest) : std::nullopt) {
      add(mapped->replacement);
      pos += mapped->length;
    } else {
      const utf8::Step step = utf8::next(text, pos);
      const bool valid = step.validity == utf8::Validity::kValid;
      add(valid ? rest.substr(0, step.length) : utf8::kReplacement);
      pos += step.length;
    }
  }
  return out;
}

std::string Normalizer::Step::apply(std::string_view text) const {
  const auto in_form = [&](unicode::Form form) {
    return map_valid(text, [&](std::string_view part) { return unicode::normalize(part, form); });
  };
  switch (rule.kind) {
    case Kind::kNfc:
      return in_form(unicode::Form::kNfc);
    case Kind::kNfd:
      return in_form(unicode::Form::kNfd);
    case Kind::kNfkc:
      return in_form(unicode::Form::kNfkc);
    case Kind::kNfkd:
      return in_form(unicode::Form::kNfkd);
    case Kind::kLowercase:
      return map_characters(text, [](std::string& out, char32_t c, std::string_view) {
        unicode::append_lower(out, c);
      });
    case Kind::kStripAccents:
      return map_characters(text, [](std::string& out, char32_t c, std::string_view bytes) {
        if (!unicode::is_mark(c)) out += bytes;
      });
    case Kind::kStrip:
      return std::string(stripped(text, rule.left, rule.right));
    case Kind::kPrepend:
      return text.empty() ? std::string() : rule.to + std::string(text);
    case Kind::kReplace:
      return replaced(text, rule.from, rule.to);
    case Kind::kReplaceRegex:
      return map_valid(
          text, [&](std::string_view part) { return regex_replaced(*regex, part, rule.to); });
    case Kind::kCharsmap:
      return map_valid(text, [&](std::string_view part) { return map_clusters(*charsmap, part); });
    case Kind::kSentencePiece:
      return sentence_piece(text);
  }
  return std::string(text);
}

Normalizer::Normalizer(std::vector<NormalizerStep> steps, const std::string& source) {
  if (steps.size() > kMaxSteps) {
    throw LoadError(source + ": " + std::to_string(steps.size()) +
                    " normalizer steps, expected at most " + std::to_string(kMaxSteps));
  }
  for (NormalizerStep& rule : steps) {
    auto step = std::make_unique<Step>();
    if (!rule.charsmap.empty()) step->charsmap.emplace(rule.charsmap, source);
    if (rule.kind == Kind::kReplaceRegex) {
      step->regex.emplace(rule.from, Regex::Syntax::kOniguruma, source);
    }
    for (const std::string& text : rule.untouched) step->untouched.add(text, 0);
    step->rule = std::move(rule);
    steps_.push_back(std::move(step));
  }
}

Normalizer::~Normalizer() = default;

std::string Normalizer::apply(std::string_view text) const {
  if (steps_.empty()) return std::string(text);
  std::string out = steps_[0]->apply(text);
  for (size_t i = 1; i < steps_.size(); ++i) out = steps_[i]->apply(out);
  return out;
}

}  // namespace headwater
