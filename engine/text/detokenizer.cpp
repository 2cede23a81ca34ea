#include "engine/text/detokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/text/utf8.h"

namespace headwater {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special, bool at_start)
    : tokenizer_(tokenizer),
      skip_special_(skip_special),
      drops_space_(at_start && tokenizer.drops_leading_space()) {}

std::string Detokenizer::push(int32_t token) {
  std::string bytes = tokenizer_.token_bytes(token, !skip_special_);
  if (drops_space_ && !tokenizer_.is_control(token)) {
    drops_space_ = false;
    if (bytes.starts_with(' ')) bytes.erase(0, 1);
  }
  pending_ += bytes;
  std::string complete;
  size_t pos = 0;
  while (pos < pending_.size()) {
    const utf8::Step step = utf8::next(pending_, pos);
    if (step.validity == utf8::Validity::kIncomplete) break;
    if (step.validity == utf8::Validity::kValid) {
      complete.append(pending_, pos, step.length);
    } else {
      complete += utf8::kReplacement;
    }
    pos += step.length;
  }
  pending_.erase(0, pos);
  return complete;
}

std::string Detokenizer::flush() {
  // push() leaves nothing but the begin of one character.
  return std::exchange(pending_, {}).empty() ? std::string() : std::string(utf8::kReplacement);
}

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : stops_(std::move(stops)), include_stop_(include_stop) {
  std::erase(stops_, "");
}

std::string StopMatcher::push(std::string_view text) {
  if (matched_) return "";
  held_ += text;

  const std::string* first = nullptr;
  size_t first_end = held_.size() + 1;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < first_end || (end == first_end && stop.size() > first->size())) {
      first = &stop;
      first_end = end;
    }
  }
  if (first) {
    matched_ = *first;
    const size_t shown = include_stop_ ? first_end : first_end - first->size();
    return std::exchange(held_, {}).substr(0, shown);
  }

  size_t hold = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > hold; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) hold = n;
    }
  }
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopMatcher::flush() { return std::exchange(held_, {}); }

}  // namespace headwater
