#include "engine/text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>

#include "engine/text/jinja/text.h"

namespace headwater::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80);
}
bool is_name(char c) { return is_name_start(c) || is_digit(c); }

// Every line end becomes \n, and one at the very end goes.
std::string with_plain_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      out += '\n';
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> run() {
    while (pos_ < source_.size()) lex_text();
    add(TokenType::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw SyntaxError(line_, what); }
  bool at(std::string_view text) const { return source_.substr(pos_).starts_with(text); }
  void add(TokenType type, std::string text) { tokens_.push_back({type, std::move(text), line_}); }

  void advance(size_t bytes) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<ptrdiff_t>(pos_ + bytes),
                                         '\n'));
    pos_ += bytes;
  }
  void skip_space() {
    const std::string_view rest = source_.substr(pos_);
    advance(rest.size() - text::strip(rest, text::Side::kLeft).size());
  }

  // The text up to the next tag, trimmed, then the tag.
  void lex_text() {
    size_t tag = pos_;
    do {
      tag = source_.find('{', tag);
    } while (tag != std::string_view::npos && !is_tag(tag) && ++tag);
    if (tag == std::string_view::npos) {
      add(TokenType::kText, std::string(source_.substr(pos_)));
      advance(source_.size() - pos_);
      return;
    }
    const char kind = source_[tag + 1];
    add_text(trimmed_before(tag, kind));
    advance(tag + 2 - pos_);
    if (at("-") || at("+")) advance(1);
    if (kind == '#') {
      skip_comment();
    } else if (kind == '{') {
      add(TokenType::kOutputBegin, "{{");
      lex_expression("}}", TokenType::kOutputEnd);
    } else if (!lex_raw()) {
      add(TokenType::kBlockBegin, "{%");
      lex_expression("%}", TokenType::kBlockEnd);
    }
  }

  void add_text(std::string_view text) {
    if (!text.empty()) add(TokenType::kText, std::string(text));
  }

  bool is_tag(size_t pos) const {
    if (pos + 1 >= source_.size()) return false;
    const char c = source_[pos + 1];
    return c == '{' || c == '%' || c == '#';
  }

  std::string_view trimmed_before(size_t tag, char kind) const {
    const std::string_view text = source_.substr(pos_, tag - pos_);
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    if (sign == '-') return text::strip(text, text::Side::kRight);
    if (sign == '+' || kind == '{') return text;
    const size_t newline = text.rfind('\n');
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    const bool starts_line = line > 0 || pos_ == 0 || source_[pos_ - 1] == '\n';
    if (starts_line && text::strip(text.substr(line)).empty()) return text.substr(0, line);
    return text;
  }

  // Passes the end of a block or comment, `end` at pos_ (with its sign), and what it trims.
  void pass_end(std::string_view end, bool trims_newline) {
    const char sign = at("-") || at("+") ? source_[pos_] : ' ';
    advance((sign == ' ' ? 0 : 1) + end.size());
    if (sign == '-') {
      skip_space();
    } else if (sign == ' ' && trims_newline && at("\n")) {
      advance(1);
    }
  }
  bool at_end(std::string_view end) const {
    const size_t sign = at("-") || (at("+") && end != "}}") ? 1 : 0;
    return source_.substr(pos_ + sign).starts_with(end);
  }

  void skip_comment() {
    while (pos_ < source_.size() && !at_end("#}")) advance(1);
    if (pos_ == source_.size()) fail("expected \"#}\" to end the comment");
    pass_end("#}", true);
  }

  // If `pos`, after "{%" and its sign, begins {% name %}: where the tag's end is.
  std::optional<size_t> tag_end(size_t pos, std::string_view name) const {
    const auto skip = [&] {
      while (pos < source_.size() && text::is_space(static_cast<unsigned char>(source_[pos]))) {
        ++pos;
      }
    };
    skip();
    if (!source_.substr(pos).starts_with(name)) return std::nullopt;
    pos += name.size();
    skip();
    const size_t sign = pos < source_.size() && (source_[pos] == '-' || source_[pos] == '+');
    if (!source_.substr(pos + sign).starts_with("%}")) return std::nullopt;
    return pos;
  }

  bool lex_raw() {
    const auto begin_end = tag_end(pos_, "raw");
    if (!begin_end) return false;
    advance(*begin_end - pos_);
    pass_end("%}", false);
    const size_t begin = pos_;
    for (size_t tag = begin; (tag = source_.find("{%", tag)) != std::string_view::npos; tag += 2) {
      const std::string_view text = trimmed_before(tag, '%');
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
      const size_t inside = tag + (sign == '-' || sign == '+' ? 3 : 2);
      const auto end = tag_end(inside, "endraw");
      if (!end) continue;
      add_text(text);
      advance(*end - pos_);
      pass_end("%}", true);
      return true;
    }
    fail("expected {% endraw %}");
  }

  void lex_expression(std::string_view end, TokenType end_type) {
    std::string brackets;
    while (true) {
      skip_space();
      if (pos_ == source_.size()) fail("expected \"" + std::string(end) + "\" to end the tag");
      if (brackets.empty() && at_end(end)) {
        add(end_type, std::string(end));
        pass_end(end, end_type == TokenType::kBlockEnd);
        return;
      }
      const char c = source_[pos_];
      if (is_name_start(c)) {
        add_while(TokenType::kName, is_name);
      } else if (is_digit(c)) {
        lex_number();
      } else if (c == '"' || c == '\'') {
        lex_string();
      } else {
        lex_operator(brackets);
      }
    }
  }

  template <typename Is>
  void add_while(TokenType type, const Is& is) {
    size_t end = pos_;
    while (end < source_.size() && is(source_[end])) ++end;
    add(type, std::string(source_.substr(pos_, end - pos_)));
    pos_ = end;
  }

  void lex_number() {
    size_t end = pos_;
    const auto digits = [&](const auto& is) {
      while (end < source_.size() && (is(source_[end]) || source_[end] == '_')) ++end;
    };
    TokenType type = TokenType::kInteger;
    const auto is_hex = [](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; };
    if (at("0x") || at("0X") || at("0b") || at("0B") || at("0o") || at("0O")) {
      end += 2;
      digits(is_hex);
    } else {
      // Only zeros may follow a zero.
      if (source_[end] == '0') {
        digits([](char c) { return c == '0'; });
        const bool goes_on = end + 1 < source_.size() && source_[end] == '.';
        if (!goes_on && end < source_.size() && is_digit(source_[end])) {
          fail("a whole number begins with 0");
        }
      }
      digits(is_digit);
      if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
        type = TokenType::kFloat;
        ++end;
        digits(is_digit);
      }
      const auto exponent = source_.substr(end, 3);
      const size_t sign = exponent.size() > 1 && (exponent[1] == '-' || exponent[1] == '+');
      if (!exponent.empty() && (exponent[0] == 'e' || exponent[0] == 'E') &&
          exponent.size() > 1 + sign && is_digit(exponent[1 + sign])) {
        type = TokenType::kFloat;
        end += 1 + sign;
        digits(is_digit);
      }
    }
    std::string number(source_.substr(pos_, end - pos_));
    std::erase(number, '_');
    add(type, std::move(number));
    pos_ = end;
  }

  void lex_string() {
    const char quote = source_[pos_];
    size_t end = pos_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("expected a closing quote");
    add(TokenType::kString, unescape(source_.substr(pos_ + 1, end - pos_ - 1)));
    advance(end + 1 - pos_);
  }

  std::string unescape(std::string_view raw) const {
    constexpr std::string_view kLetters = "\\'\"abfnrtv", kMeanings = "\\'\"\a\b\f\n\r\t\v";
    std::string out;
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\') {
        out += raw[i];
        continue;
      }
      const char c = raw[++i];
      if (const size_t letter = kLetters.find(c); letter != std::string_view::npos) {
        out += kMeanings[letter];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        append_code_point(out, raw.substr(i + 1, digits), digits, 16);
        i += digits;
      } else if (c == 'N') {
        fail("characters by name are not supported in a chat template");
      } else if (c >= '0' && c <= '7') {
        size_t digits = 1;
        while (digits < 3 && i + digits < raw.size() && raw[i + digits] >= '0' &&
               raw[i + digits] <= '7') {
          ++digits;
        }
        append_code_point(out, raw.substr(i, digits), digits, 8);
        i += digits - 1;
      } else if (c != '\n') {
        out.append({'\\', c});
      }
    }
    return out;
  }

  void append_code_point(std::string& out, std::string_view text, size_t digits, int base) const {
    const bool ok = text.size() == digits && std::ranges::all_of(text, [](char c) {
                      return std::isxdigit(static_cast<unsigned char>(c)) != 0;
                    });
    if (!ok) fail("expected " + std::to_string(digits) + " hexadecimal digits after the escape");
    const unsigned long c = std::stoul(std::string(text), nullptr, base);
    if (c > 0x10FFFF) fail("an escape names no character");
    if (c >= 0xD800 && c <= 0xDFFF) {
      out += utf8::kReplacement;
    } else {
      utf8::append(out, static_cast<char32_t>(c));
    }
  }

  void lex_operator(std::string& brackets) {
    constexpr std::array<std::string_view, 25> kOperators = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",",
    };
    const auto* op = std::ranges::find_if(kOperators, [&](auto text) { return at(text); });
    if (op == kOperators.end()) {
      fail("unexpected character " +
           std::string(source_.substr(pos_, utf8::next(source_, pos_).length)));
    }
    const char c = (*op)[0];
    if (c == '(') brackets += ')';
    if (c == '[') brackets += ']';
    if (c == '{') brackets += '}';
    if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty() || brackets.back() != c) fail(std::string("unexpected \"") + c + "\"");
      brackets.pop_back();
    }
    add(TokenType::kOperator, std::string(*op));
    pos_ += op->size();
  }

  std::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  const std::string plain = with_plain_newlines(source);
  return Lexer(plain).run();
}

}  // namespace headwater::jinja
