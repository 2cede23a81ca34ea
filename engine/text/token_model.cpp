#include "engine/text/token_model.h"

#include <algorithm>
#include <cstdio>
#include <unordered_map>

#include "engine/text/utf8.h"

namespace headwater {

void Seams::add(std::string_view token) {
  char32_t left = 0;
  for (size_t pos = 0; pos < token.size();) {
    const utf8::Step step = utf8::next(token, pos);
    if (pos > 0) {
      if (left < kAscii && step.code_point < kAscii) {
        ascii_[left * kAscii + step.code_point] = true;
      } else {
        others_.insert(key(left, step.code_point));
      }
    }
    left = step.code_point;
    pos += step.length;
  }
}

bool Seams::joined(char32_t left, char32_t right) const {
  if (left < kAscii && right < kAscii) return ascii_[left * kAscii + right];
  return others_.contains(key(left, right));
}

size_t Seams::next_seam(std::string_view text, size_t pos) const {
  utf8::Step step = utf8::next(text, pos);
  pos += step.length;
  while (pos < text.size()) {
    const utf8::Step right = utf8::next(text, pos);
    if (!joined(step.code_point, right.code_point)) break;
    pos += right.length;
    step = right;
  }
  return pos;
}

Fallback::Fallback(const Vocabulary& vocabulary)
    : unknown_(vocabulary.drop_unknown ? -1 : vocabulary.unknown), fuse_(vocabulary.fuse_unknown) {
  if (!vocabulary.byte_fallback) return;
  bytes_.assign(256, -1);
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (const int byte = vocabulary.byte_of(static_cast<int32_t>(id)); byte >= 0) {
      bytes_[static_cast<size_t>(byte)] = static_cast<int32_t>(id);
    }
  }
}

void Fallback::encode(std::string_view text, bool& run, std::vector<int32_t>& ids) const {
  const auto has_byte = [&](char c) { return bytes_[static_cast<uint8_t>(c)] >= 0; };
  if (!bytes_.empty() && std::ranges::all_of(text, has_byte)) {
    for (const char c : text) ids.push_back(bytes_[static_cast<uint8_t>(c)]);
    run = false;
    return;
  }
  if (unknown_ >= 0 && !(run && fuse_)) ids.push_back(unknown_);
  run = true;
}

void Fallback::encode_byte(uint8_t byte, std::vector<int32_t>& ids) const {
  if (!bytes_.empty() && bytes_[byte] >= 0) {
    ids.push_back(bytes_[byte]);
  } else if (unknown_ >= 0) {
    ids.push_back(unknown_);
  }
}

}  // namespace headwater
