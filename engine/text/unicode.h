// Unicode's normal forms, cases and categories (utf8proc's version of the standard). Pure
// functions; texts are valid UTF-8.
#pragma once

#include <string>
#include <string_view>

namespace headwater::unicode {

enum class Form : uint8_t { kNfc, kNfd, kNfkc, kNfkd };
std::string normalize(std::string_view text, Form form);

// The character that a text ends with; a byte, if that is no UTF-8.
std::string_view last_character(std::string_view text);

// The case mappings of one character: full ones where they give several.
void append_lower(std::string& out, char32_t c);
void append_upper(std::string& out, char32_t c);
void append_title(std::string& out, char32_t c);

bool is_mark(char32_t c);
bool is_white_space(char32_t c);
// Bytes of white space that a text begins and ends with.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);
// Two letters, as in "Lu"; "Cn" for what is not assigned.
std::string_view category(char32_t c);

// Where the extended grapheme cluster at text[pos] ends.
size_t grapheme_end(std::string_view text, size_t pos);

}  // namespace headwater::unicode
