// PreTokenizer: cuts text into the pieces that a model's tokens stay inside of. Steps run in order,
// each on every piece the one before left. Immutable after construction, thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/regex.h"

namespace headwater {

struct PreStep {
  // What becomes of what the expression matches; the text between the matches stays in any case.
  enum class Behavior : uint8_t {
    kIsolated,            // pieces of their own, as are the gaps
    kRemoved,             // dropped
    kMergedWithPrevious,  // joined to the gap before
    kMergedWithNext,      // joined to the gap after
    kContiguous,          // as isolated, matches that touch as one
  };
  enum class Prefix : uint8_t { kNone, kFirst, kAlways };

  // A cut, if not empty.
  std::string regex = {};
  Regex::Syntax syntax = Regex::Syntax::kPcre;
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;  // the gaps are the matches

  // Or an edit: every space becomes `space` (if not empty), then `prefix` goes in front of a piece
  // that does not begin with it: of every piece, or of the one at the very start of the text.
  std::string space = {};
  std::string prefix = {};
  Prefix prefix_where = Prefix::kNone;
};

// Steps that the pre-tokenizer of a GGUF file stands for. Throws LoadError with the names known.
std::vector<PreStep> pre_steps_of(const std::string& name, const std::string& source);

class PreTokenizer {
 public:
  // No steps: the whole text is one piece. Throws LoadError: an expression that does not compile.
  PreTokenizer(const std::vector<PreStep>& steps, const std::string& source);
  ~PreTokenizer();

  using Piece = std::function<void(std::string_view)>;
  // text: valid UTF-8; at_start: nothing came before it. No piece is empty; one that an edit made
  // is valid only during the call. An expression that exceeds the match limit leaves the rest of
  // its subject as one gap.
  void split(std::string_view text, bool at_start, const Piece& piece) const;
  bool cuts() const { return !steps_.empty(); }

 private:
  struct Step {
    PreStep rule;
    std::unique_ptr<Regex> regex;  // null: an edit
  };
  class Run;
  std::vector<Step> steps_;
};

}  // namespace headwater
