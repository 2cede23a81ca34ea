// UTF-8 stepping shared by tokenizer, detokenizer and templates. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace headwater::utf8 {

enum class Validity : uint8_t {
  kValid,
  kInvalid,     // can never become a character
  kIncomplete,  // the text ends inside what could still become one
};

struct Step {
  char32_t code_point = 0;  // only if kValid
  size_t length = 0;        // bytes; an invalid step is a maximal subpart, as Python counts them
  Validity validity = Validity::kValid;
};

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// The step at text[pos]; pos < text.size().
Step next(std::string_view text, size_t pos);

void append(std::string& out, char32_t code_point);

// The text with every invalid or incomplete step replaced by U+FFFD.
std::string sanitize(std::string_view text);

}  // namespace headwater::utf8
