// Detokenizer: ids -> text, incrementally; StopMatcher: stop strings across token borders.
// One of each per choice; not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace headwater {

class Detokenizer {
 public:
  // tokenizer is not owned. skip_special: control tokens give no text. at_start: the ids begin a
  // text rather than continue one, so a leading space that encoding put there goes
  // (Tokenizer::drops_leading_space); control tokens may come before it.
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true, bool at_start = false);
  // Text that became complete with this token: always whole UTF-8 characters; bytes that can
  // no longer become valid are replaced by U+FFFD (as Python's errors="replace").
  std::string push(int32_t token);
  // What is still held back, replaced if incomplete.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  bool drops_space_;  // until the first token that is no control token
  std::string pending_;
};

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop = false);
  // Appends text; returns what may be shown: everything but a tail that could still become a stop
  // string. Once a stop matched, matched() is set and the rest is dropped. The match that is
  // complete first wins, the longest of those, however the text is cut into calls. Empty stop
  // strings are ignored.
  std::string push(std::string_view text);
  std::string flush();
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  std::vector<std::string> stops_;
  bool include_stop_;
  std::string held_;
  std::optional<std::string> matched_;
};

}  // namespace headwater
