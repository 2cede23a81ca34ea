// quote: a name from a file as it may appear in a message: in quotes, unprintable bytes as \xNN,
// cut after 80 bytes.
#pragma once

#include <string>
#include <string_view>

namespace headwater {

inline std::string quote(std::string_view text) {
  constexpr size_t kMaxBytes = 80;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text.substr(0, kMaxBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F && c != '"' && c != '\\') {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  out += text.size() > kMaxBytes ? "...\"" : "\"";
  return out;
}

}  // namespace headwater
