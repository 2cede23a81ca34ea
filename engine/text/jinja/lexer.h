// Tokens of a template, with the white space already trimmed as trim_blocks and lstrip_blocks say.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace headwater::jinja {

struct SyntaxError : std::runtime_error {
  SyntaxError(int at_line, const std::string& what) : std::runtime_error(what), line(at_line) {}
  int line;
};

enum class TokenType : uint8_t {
  kText,
  kOutputBegin,
  kOutputEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,  // text: unescaped
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type;
  std::string text;
  int line;
};

// source: valid UTF-8. Throws SyntaxError. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace headwater::jinja
