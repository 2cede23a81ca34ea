// The byte-level alphabet: every byte has one printable character, so that vocabularies can be
// stored as text. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace headwater::byte_level {

// The character that stands for a byte, in UTF-8.
const std::string& character(uint8_t byte);

// Bytes that a mapped text stands for; nullopt if a character is outside the alphabet.
std::optional<std::string> decode(std::string_view mapped);

}  // namespace headwater::byte_level
