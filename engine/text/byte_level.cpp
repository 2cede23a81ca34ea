#include "engine/text/byte_level.h"

#include <array>

#include "engine/text/utf8.h"

namespace headwater::byte_level {
namespace {

// Printable Latin-1 stands for itself; the other 68 bytes take U+0100 upwards, in order.
constexpr char32_t kFirstShifted = 0x100;
constexpr char32_t kNumShifted = 68;

constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<int16_t, kFirstShifted + kNumShifted> bytes;  // by code point; -1: not in the alphabet

  Alphabet() {
    bytes.fill(-1);
    char32_t shifted = kFirstShifted;
    for (int byte = 0; byte < 256; ++byte) {
      const char32_t c = stands_for_itself(byte) ? static_cast<char32_t>(byte) : shifted++;
      utf8::append(characters[byte], c);
      bytes[c] = static_cast<int16_t>(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet kAlphabet;
  return kAlphabet;
}

}  // namespace

const std::string& character(uint8_t byte) { return alphabet().characters[byte]; }

std::optional<std::string> decode(std::string_view mapped) {
  const auto& bytes = alphabet().bytes;
  std::string out;
  out.reserve(mapped.size());
  for (size_t pos = 0; pos < mapped.size();) {
    const utf8::Step step = utf8::next(mapped, pos);
    if (step.validity != utf8::Validity::kValid || step.code_point >= bytes.size() ||
        bytes[step.code_point] < 0) {
      return std::nullopt;
    }
    out += static_cast<char>(bytes[step.code_point]);
    pos += step.length;
  }
  return out;
}

}  // namespace headwater::byte_level
