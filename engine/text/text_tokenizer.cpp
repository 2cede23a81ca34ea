#include "engine/text/text_tokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/text/bpe_model.h"
#include "engine/text/byte_level.h"
#include "engine/text/unicode.h"
#include "engine/text/unigram_model.h"
#include "engine/text/utf8.h"

namespace headwater {
namespace {

char32_t code_point(std::string_view character) {
  const utf8::Step step = utf8::next(character, 0);
  return step.validity == utf8::Validity::kValid ? step.code_point : 0xFFFD;
}

bool is_word(std::string_view character) {
  const std::string_view category = unicode::category(code_point(character));
  return category[0] == 'L' || category[0] == 'M' || category == "Nd" || category == "Nl" ||
         category == "Pc";
}

}  // namespace

TextTokenizer::TextTokenizer(Vocabulary vocabulary, std::vector<int32_t> eog)
    : vocabulary_(std::move(vocabulary)),
      eog_(std::move(eog)),
      normalizer_(std::exchange(vocabulary_.normalizer, {}), vocabulary_.source),
      pre_tokenizer_(vocabulary_.pre_steps, vocabulary_.source) {
  bytes_.reserve(vocabulary_.tokens.size());
  by_text_.reserve(vocabulary_.tokens.size());
  for (size_t i = 0; i < vocabulary_.tokens.size(); ++i) {
    bytes_.push_back(decoded(static_cast<int32_t>(i)));
    by_text_.try_emplace(vocabulary_.tokens[i], static_cast<int32_t>(i));
  }
  index_specials();
  if (vocabulary_.model == "unigram") {
    model_ = std::make_unique<UnigramModel>(vocabulary_);
  } else {
    model_ = std::make_unique<BpeModel>(vocabulary_, bytes_);
  }
}

std::string TextTokenizer::decoded(int32_t id) const {
  const std::string& text = vocabulary_.tokens[id];
  if (is_special(vocabulary_.kinds[id])) return text;
  if (const int byte = vocabulary_.byte_of(id); byte >= 0) {
    return std::string(1, static_cast<char>(byte));
  }
  if (vocabulary_.model == "bpe") return byte_level::decode(text).value_or(text);
  std::string out;
  const std::string& space = vocabulary_.space;
  for (size_t pos = 0; pos < text.size();) {
    if (!space.empty() && text.compare(pos, space.size(), space) == 0) {
      out += ' ';
      pos += space.size();
    } else {
      out += text[pos++];
    }
  }
  return out;
}

void TextTokenizer::index_specials() {
  const bool leftmost = vocabulary_.special_order == SpecialSplitter::Order::kLeftmost;
  for (int32_t id = 0; id < vocab_size(); ++id) {
    const TokenKind kind = vocabulary_.kinds[id];
    if (!is_special(kind)) continue;
    const std::string& text = vocabulary_.tokens[id];
    const auto rule = vocabulary_.special_rules.find(id);
    if (rule != vocabulary_.special_rules.end() && rule->second.normalized) {
      normalized_.add(normalizer_.apply(text), id);
      continue;
    }
    all_special_.add(text, id);
    if (leftmost || kind == TokenKind::kUserDefined) user_defined_.add(text, id);
  }
}

std::vector<TextTokenizer::Fragment> TextTokenizer::cut(std::string_view text,
                                                        const SpecialSplitter& specials,
                                                        bool parse_special) const {
  std::vector<Fragment> out;
  size_t begin = 0;  // of what no fragment has yet
  for (const auto& match : specials.find_all(text, vocabulary_.special_order)) {
    size_t from = match.begin, to = match.begin + match.length;
    if (!parse_special && is_hidden(vocabulary_.kinds[match.id])) continue;
    if (const auto it = vocabulary_.special_rules.find(match.id);
        it != vocabulary_.special_rules.end()) {
      const SpecialRule& rule = it->second;
      if (rule.single_word &&
          ((from > 0 && is_word(unicode::last_character(text.substr(0, from)))) ||
           (to < text.size() && is_word(text.substr(to, 4))))) {
        continue;
      }
      if (rule.strips_left && from > begin) {
        from -= unicode::trailing_space(text.substr(begin, from - begin));
      }
      if (rule.strips_right) to += unicode::leading_space(text.substr(to));
    }
    if (begin < from) out.push_back({begin, from, -1});
    out.push_back({from, to, match.id});
    begin = std::max(begin, to);
  }
  if (begin < text.size()) out.push_back({begin, text.size(), -1});
  return out;
}

std::vector<int32_t> TextTokenizer::encode(std::string_view text,
                                           bool add_special,
                                           bool parse_special) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 2);
  if (add_special) ids = vocabulary_.before;
  for (const Fragment& fragment :
       cut(text, parse_special ? all_special_ : user_defined_, parse_special)) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
    } else {
      encode_fragment(text.substr(fragment.begin, fragment.end - fragment.begin),
                      fragment.begin == 0,
                      parse_special,
                      ids);
    }
  }
  if (add_special) ids.insert(ids.end(), vocabulary_.after.begin(), vocabulary_.after.end());
  return ids;
}

void TextTokenizer::encode_fragment(std::string_view text,
                                    bool at_start,
                                    bool parse_special,
                                    std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!normalizer_.changes_nothing()) {
    normalized = normalizer_.apply(text);
    text = normalized;
  }
  if (normalized_.empty()) {
    encode_text(text, at_start, ids);
    return;
  }
  for (const Fragment& fragment : cut(text, normalized_, parse_special)) {
    if (fragment.id >= 0) {
      ids.push_back(fragment.id);
    } else {
      encode_text(text.substr(fragment.begin, fragment.end - fragment.begin),
                  at_start && fragment.begin == 0,
                  ids);
    }
  }
}

void TextTokenizer::encode_text(std::string_view text,
                                bool at_start,
                                std::vector<int32_t>& ids) const {
  const auto encode_valid = [&](size_t begin, size_t end) {
    if (begin == end) return;
    pre_tokenizer_.split(text.substr(begin, end - begin),
                         at_start && begin == 0,
                         [&](std::string_view piece) { model_->encode(piece, ids); });
  };
  size_t begin = 0, pos = 0;
  while (pos < text.size()) {
    const utf8::Step step = utf8::next(text, pos);
    if (step.validity != utf8::Validity::kValid) {
      encode_valid(begin, pos);
      for (const char byte : text.substr(pos, step.length)) {
        model_->encode_byte(static_cast<uint8_t>(byte), ids);
      }
      begin = pos + step.length;
    }
    pos += step.length;
  }
  encode_valid(begin, text.size());
}

std::string TextTokenizer::token_bytes(int32_t id, bool with_special) const {
  if (!in_range(id) || (is_hidden(vocabulary_.kinds[id]) && !with_special)) return "";
  return bytes_[id];
}

std::string_view TextTokenizer::token_text(int32_t id) const {
  return in_range(id) ? std::string_view(vocabulary_.tokens[id]) : std::string_view();
}

bool TextTokenizer::is_control(int32_t id) const {
  return in_range(id) && is_hidden(vocabulary_.kinds[id]);
}

SpecialRule TextTokenizer::special_rule(int32_t id) const {
  const auto it = vocabulary_.special_rules.find(id);
  return it == vocabulary_.special_rules.end() ? SpecialRule{} : it->second;
}

bool TextTokenizer::adds_bos() const {
  return vocabulary_.bos >= 0 &&
         std::ranges::find(vocabulary_.before, vocabulary_.bos) != vocabulary_.before.end();
}

int32_t TextTokenizer::find(std::string_view token) const {
  const auto it = by_text_.find(token);
  return it == by_text_.end() ? -1 : it->second;
}

}  // namespace headwater
