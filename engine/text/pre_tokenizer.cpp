#include "engine/text/pre_tokenizer.h"

#include <optional>

#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr size_t kMaxSteps = 16;

std::string edited(const PreStep& rule, std::string_view text, bool at_start) {
  std::string out;
  out.reserve(text.size() + rule.prefix.size());
  if (rule.space.empty()) {
    out = text;
  } else {
    for (const char c : text) {
      if (c == ' ') {
        out += rule.space;
      } else {
        out += c;
      }
    }
  }
  const bool wanted = rule.prefix_where == PreStep::Prefix::kAlways ||
                      (rule.prefix_where == PreStep::Prefix::kFirst && at_start);
  if (wanted && !out.starts_with(rule.prefix)) out.insert(0, rule.prefix);
  return out;
}

}  // namespace

// One call of split(): the matchers, and the recursion over the steps.
class PreTokenizer::Run {
 public:
  Run(const PreTokenizer& pre, size_t text_bytes, const Piece& piece) : pre_(pre), piece_(piece) {
    matchers_.resize(pre.steps_.size());
    for (size_t i = 0; i < matchers_.size(); ++i) {
      if (pre.steps_[i].regex) matchers_[i].emplace(*pre.steps_[i].regex, text_bytes);
    }
  }

  void run(std::string_view text, bool at_start, size_t step) {
    if (text.empty()) return;
    if (step == pre_.steps_.size()) {
      piece_(text);
      return;
    }
    const PreStep& rule = pre_.steps_[step].rule;
    if (!pre_.steps_[step].regex) {
      run(edited(rule, text, at_start), at_start, step + 1);
      return;
    }
    cut(text, at_start, step);
  }

 private:
  // Spans of text, alternately gap and match, as the behavior joins them.
  void cut(std::string_view text, bool at_start, size_t step) {
    using Behavior = PreStep::Behavior;
    const PreStep& rule = pre_.steps_[step].rule;
    size_t begin = 0;  // of what is collected and not passed on yet
    bool last_match = false;
    const auto pass = [&](size_t end) {
      run(text.substr(begin, end - begin), at_start && begin == 0, step + 1);
      begin = end;
    };
    const auto add = [&](size_t from, size_t to, bool is_match) {
      switch (rule.behavior) {
        case Behavior::kIsolated:
          pass(from);
          pass(to);
          break;
        case Behavior::kRemoved:
          pass(from);
          if (is_match) {
            begin = to;
          } else {
            pass(to);
          }
          break;
        case Behavior::kContiguous:
          if (is_match != last_match) pass(from);
          break;
        case Behavior::kMergedWithPrevious:
          if (is_match) pass(to);
          break;
        case Behavior::kMergedWithNext:
          if (is_match) pass(from);
          break;
      }
      last_match = is_match;
    };
    bool after_match = false;
    size_t pos = 0;
    while (const auto match = matchers_[step]->find(text, pos, after_match)) {
      if (match->first > pos) add(pos, match->first, rule.invert);
      add(match->first, match->second, !rule.invert);
      pos = match->second;
      after_match = true;
    }
    if (pos < text.size()) add(pos, text.size(), rule.invert);
    pass(text.size());
  }

  const PreTokenizer& pre_;
  const Piece& piece_;
  std::vector<std::optional<Regex::Matcher>> matchers_;
};

PreTokenizer::PreTokenizer(const std::vector<PreStep>& steps, const std::string& source) {
  if (steps.size() > kMaxSteps) {
    throw LoadError(source + ": " + std::to_string(steps.size()) +
                    " pre-tokenizer steps, expected at most " + std::to_string(kMaxSteps));
  }
  for (const PreStep& rule : steps) {
    steps_.push_back({rule, nullptr});
    if (!rule.regex.empty()) {
      steps_.back().regex = std::make_unique<Regex>(rule.regex, rule.syntax, source);
    }
  }
}

PreTokenizer::~PreTokenizer() = default;

void PreTokenizer::split(std::string_view text, bool at_start, const Piece& piece) const {
  if (steps_.empty()) {
    if (!text.empty()) piece(text);
    return;
  }
  Run(*this, text.size(), piece).run(text, at_start, 0);
}

}  // namespace headwater
