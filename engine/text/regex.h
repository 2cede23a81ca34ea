// Regex: the regular expressions of tokenizers, over valid UTF-8 with Unicode classes (PCRE2 with
// JIT). Immutable after construction and shared by threads; a Matcher belongs to one.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace headwater {

class Regex {
 public:
  // kOniguruma: the syntax of tokenizer.json, whose package matches with Oniguruma; what PCRE2
  // would read differently is rewritten, and refused where it cannot be.
  enum class Syntax : uint8_t { kPcre, kOniguruma };

  // Throws LoadError: an expression that does not compile. source: the file, for messages.
  Regex(const std::string& pattern, Syntax syntax, const std::string& source);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  using Range = std::pair<size_t, size_t>;  // [begin, end)

  // What one pass over texts of at most text_bytes needs.
  class Matcher {
   public:
    Matcher(const Regex& regex, size_t text_bytes);
    ~Matcher();
    Matcher(Matcher&&) noexcept;
    // The next match at or after `from`; an empty one only if it does not begin where the match
    // before ended (after_match). nullopt: none, or the match limit was exceeded.
    std::optional<Range> find(std::string_view text, size_t from, bool after_match) const;

   private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// An expression that matches the text and nothing else.
std::string regex_literal(std::string_view text);

}  // namespace headwater
