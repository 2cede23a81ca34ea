// PreTokenizer: cuts text into the pieces that BPE merges stay inside of. Each stage is a regular
// expression that cuts the pieces of the stage before: its matches become pieces, and so do the
// gaps, so nothing is ever lost. Immutable after construction, thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace headwater {

class PreTokenizer {
 public:
  // Stages that a pre-tokenizer's name stands for. Throws LoadError with the names known.
  static std::vector<std::string> stages_of(const std::string& name, const std::string& source);
  // Throws LoadError: an expression that does not compile.
  PreTokenizer(const std::vector<std::string>& stages, const std::string& source);
  ~PreTokenizer();

  // text: valid UTF-8. The pieces concatenate to it; none is empty. An expression that exceeds the
  // match limit leaves the rest of its subject as one piece.
  void split(std::string_view text, const std::function<void(std::string_view)>& piece) const;

 private:
  class Stage;
  std::vector<std::unique_ptr<Stage>> stages_;
};

}  // namespace headwater
