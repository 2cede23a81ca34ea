// Normalizer: what happens to a text before it is cut and looked up, step by step. Immutable after
// construction, thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/charsmap.h"
#include "engine/text/regex.h"

namespace headwater {

struct NormalizerStep {
  enum class Kind : uint8_t {
    kNfc,
    kNfd,
    kNfkc,
    kNfkd,
    kLowercase,
    kStripAccents,   // drops all marks
    kStrip,          // white space at the ends named by left and right
    kPrepend,        // `to`, in front of what is not empty
    kReplace,        // the text `from` by `to`
    kReplaceRegex,   // what the expression `from` matches by `to`
    kCharsmap,       // per grapheme cluster, as the `tokenizers` package
    kSentencePiece,  // longest matches of the charsmap, then spaces as the flags say
  };
  Kind kind;
  std::string from = {}, to = {};
  bool left = false, right = false;
  std::string charsmap = {};  // kCharsmap, kSentencePiece: its bytes; the latter: or none
  bool add_prefix = false;    // kSentencePiece: `to` in front, if not there
  bool merge_spaces = false;  // kSentencePiece: runs become one, none at the ends
  std::vector<std::string> untouched = {};  // kSentencePiece: texts that pass unchanged
};

class Normalizer {
 public:
  // Throws LoadError: a broken charsmap or expression.
  Normalizer(std::vector<NormalizerStep> steps, const std::string& source);
  ~Normalizer();

  bool changes_nothing() const { return steps_.empty(); }
  // Bytes that are not UTF-8 pass where a step works on bytes, and become U+FFFD where not.
  std::string apply(std::string_view text) const;

 private:
  struct Step;
  std::vector<std::unique_ptr<Step>> steps_;
};

}  // namespace headwater
