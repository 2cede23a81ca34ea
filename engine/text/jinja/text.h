// Python's text functions over UTF-8: positions and lengths count characters. Pure functions; texts
// are valid UTF-8.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/utf8.h"

namespace headwater::jinja::text {

bool is_space(char32_t c);

size_t length(std::string_view s);                 // in characters
size_t byte_offset(std::string_view s, size_t n);  // of character n, or the size
size_t char_index(std::string_view s, size_t byte_offset);
std::vector<std::string_view> characters(std::string_view s);

enum class Side : uint8_t { kLeft = 1, kRight = 2, kBoth = 3 };
// Without `chars`: white space, else any of these characters.
std::string_view strip(std::string_view s,
                       Side side = Side::kBoth,
                       std::optional<std::string_view> chars = std::nullopt);

std::string upper(std::string_view s);
std::string lower(std::string_view s);
std::string capitalize(std::string_view s);
std::string title(std::string_view s);
std::string swap_case(std::string_view s);
std::string title_words(std::string_view s);  // jinja2's filter, which knows words by their borders
int64_t count_words(std::string_view s);
bool is_word_character(char32_t c);
// Padded to `width` characters: on the left, on the right, or around.
std::string pad(std::string_view s, int64_t width, std::string_view fill, Side side);
std::string replace(std::string_view s, std::string_view from, std::string_view to, int64_t count);

// max < 0: no limit. Without a separator: runs of white space, none at the ends.
std::vector<std::string> split(std::string_view s,
                               std::optional<std::string_view> separator,
                               int64_t max);
std::vector<std::string> rsplit(std::string_view s,
                                std::optional<std::string_view> separator,
                                int64_t max);
std::vector<std::string> split_lines(std::string_view s, bool keep_ends);

std::string float_repr(double d);
std::string fixed(double d, int digits);
void append_quoted(std::string& out, std::string_view s);  // repr(str)
void append_json_string(std::string& out, std::string_view s, bool ensure_ascii);

}  // namespace headwater::jinja::text
