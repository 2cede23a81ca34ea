#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <array>

#include "engine/text/utf8.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr size_t kMaxPatternBytes = 16384;
constexpr uint32_t kMaxNesting = 64;
constexpr uint32_t kMinMatchLimit = 1'000'000;
constexpr uint32_t kHeapLimitKib = 65536;
constexpr size_t kJitStackStart = 32 << 10, kJitStackMax = 1 << 20;

// Unicode's White_Space: PCRE2's own \s holds U+180E, which Unicode took out.
constexpr std::string_view kSpaces =
    R"(\x09-\x0D\x20\x85\xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr std::string_view kOnigurumaWord = R"(\p{L}\p{M}\p{Nd}\p{Pc})";

struct Unsupported {
  std::string why;
};

// Rewrites what PCRE2 reads differently; see the two syntaxes in the header.
class Rewriter {
 public:
  Rewriter(std::string_view pattern, Regex::Syntax syntax)
      : pattern_(pattern), oniguruma_(syntax == Regex::Syntax::kOniguruma) {}

  std::string run() {
    while (pos_ < pattern_.size()) {
      const char c = pattern_[pos_];
      if (c == '\\' && pos_ + 1 < pattern_.size()) {
        escape();
      } else if (c == '[' && class_depth_ == 0) {
        open_class();
      } else if (class_depth_ > 0) {
        in_class(c);
      } else if (c == '{' && oniguruma_) {
        interval();
      } else {
        if (oniguruma_ && pattern_.substr(pos_).starts_with("(?m")) {
          throw Unsupported{"uses (?m), which Oniguruma and PCRE2 read differently"};
        }
        // A quantifier applies to a whole group: where that began is not kept.
        atom_ = c == ')' ? std::string::npos : out_.size();
        out_ += c;
        ++pos_;
      }
    }
    return std::move(out_);
  }

 private:
  void set_of(std::string_view members, bool negated) {
    if (class_depth_ > 0) {
      if (negated) throw Unsupported{"uses a negated class inside a class"};
      out_ += members;
    } else {
      atom_ = out_.size();
      out_.append(negated ? "[^" : "[").append(members).append("]");
    }
  }

  void escape() {
    const char c = pattern_[pos_ + 1];
    if (c == 's' || c == 'S') {
      // PCRE2 has \S inside classes, and no way to say it without U+180E.
      if (c == 'S' && class_depth_ > 0) {
        out_ += "\\S";
      } else {
        set_of(kSpaces, c == 'S');
      }
    } else if (oniguruma_ && (c == 'w' || c == 'W')) {
      set_of(kOnigurumaWord, c == 'W');
    } else if (oniguruma_ && (c == 'h' || c == 'H' || c == 'G' || c == 'K' || c == 'R')) {
      throw Unsupported{std::string("uses \\") + c +
                        ", which Oniguruma and PCRE2 read differently"};
    } else if (oniguruma_ && c == 'u' && pos_ + 6 <= pattern_.size()) {
      if (class_depth_ == 0) atom_ = out_.size();
      out_.append("\\x{").append(pattern_.substr(pos_ + 2, 4)).append("}");
      pos_ += 4;
    } else {
      if (class_depth_ == 0) atom_ = out_.size();
      out_.append(pattern_.substr(pos_, 2));
      // \p{L} and the like are one atom.
      if ((c == 'p' || c == 'P' || c == 'x') && pos_ + 2 < pattern_.size() &&
          pattern_[pos_ + 2] == '{') {
        const size_t end = std::min(pattern_.find('}', pos_), pattern_.size() - 1);
        out_.append(pattern_.substr(pos_ + 2, end - pos_ - 1));
        pos_ = end - 1;
      }
    }
    pos_ += 2;
  }

  void open_class() {
    atom_ = out_.size();
    ++class_depth_;
    out_ += '[';
    ++pos_;
    if (pos_ < pattern_.size() && pattern_[pos_] == '^') {
      out_ += '^';
      ++pos_;
    }
    if (pos_ < pattern_.size() && pattern_[pos_] == ']') {  // first in its class: a member
      out_ += "\\]";
      ++pos_;
    }
  }

  void in_class(char c) {
    const std::string_view rest = pattern_.substr(pos_);
    if (c == '[' && !rest.starts_with("[:")) {
      if (!oniguruma_) {
        out_ += "\\[";
      } else if (rest.starts_with("[^")) {
        throw Unsupported{"uses a negated class inside a class"};
      } else {
        ++class_depth_;  // a union: the members join those outside
      }
    } else if (rest.starts_with("[:")) {
      const size_t end = pattern_.find(":]", pos_);
      if (end == std::string_view::npos) throw Unsupported{"has a class without end"};
      out_.append(pattern_.substr(pos_, end + 2 - pos_));
      pos_ = end + 1;
    } else if (oniguruma_ && rest.starts_with("&&")) {
      throw Unsupported{"uses && inside a class, which PCRE2 does not have"};
    } else if (c == ']') {
      if (--class_depth_ == 0) out_ += ']';
    } else {
      out_ += c;
    }
    ++pos_;
  }

  // {n,m}+ is an interval repeated in Oniguruma, but possessive in PCRE2.
  void interval() {
    const size_t end = pattern_.find('}', pos_);
    if (end == std::string_view::npos) {
      out_ += pattern_[pos_++];
      return;
    }
    const std::string_view text = pattern_.substr(pos_, end + 1 - pos_);
    pos_ = end + 1;
    if (text.starts_with("{,")) {
      out_.append("{0").append(text.substr(1));
    } else {
      out_ += text;
    }
    if (pos_ < pattern_.size() && pattern_[pos_] == '+') {
      if (atom_ == std::string::npos) throw Unsupported{"repeats an interval of a group with +"};
      out_.insert(atom_, "(?:");
      out_ += ")+";
      ++pos_;
    }
  }

  std::string_view pattern_;
  bool oniguruma_;
  std::string out_;
  size_t pos_ = 0;
  int class_depth_ = 0;
  size_t atom_ = std::string::npos;  // where in out_ the atom a quantifier applies to begins
};

template <auto kFree>
struct Deleter {
  template <typename T>
  void operator()(T* p) const {
    kFree(p);
  }
};
using Code = std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Deleter<pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>>;

Code compile(const std::string& original, Regex::Syntax syntax, const std::string& source) {
  const auto fail = [&](const std::string& why) -> LoadError {
    return LoadError(source + ": pre-tokenizer expression " + why + ": " +
                     utf8::sanitize(original.substr(0, 200)));
  };
  if (original.empty()) throw fail("is empty");
  std::string pattern;
  try {
    pattern = Rewriter(original, syntax).run();
  } catch (const Unsupported& unsupported) {
    throw fail(unsupported.why);
  }
  CompileContext context(pcre2_compile_context_create(nullptr));
  pcre2_set_max_pattern_length(context.get(), kMaxPatternBytes);
  pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // ^ and $ mean lines in Oniguruma.
  const uint32_t lines = syntax == Regex::Syntax::kOniguruma ? PCRE2_MULTILINE : 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                          pattern.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | lines,
                          &error,
                          &offset,
                          context.get()));
  if (!code) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    throw fail("does not compile (" + std::string(reinterpret_cast<char*>(message.data())) + ")");
  }
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

bool is_compiled(const pcre2_code* code) {
  size_t bytes = 0;
  return pcre2_pattern_info(code, PCRE2_INFO_JITSIZE, &bytes) == 0 && bytes > 0;
}

}  // namespace

struct Regex::Impl {
  Code code;
};

Regex::Regex(const std::string& pattern, Syntax syntax, const std::string& source)
    : impl_(std::make_unique<Impl>(Impl{compile(pattern, syntax, source)})) {}
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

struct Regex::Matcher::Impl {
  const pcre2_code* code;
  bool compiled;  // by JIT; an unsupported machine or pattern has the interpreter
  MatchData data;
  MatchContext context;
  JitStack stack;
};

Regex::Matcher::Matcher(const Regex& regex, size_t text_bytes)
    : impl_(std::make_unique<Impl>(
          Impl{regex.impl_->code.get(),
               is_compiled(regex.impl_->code.get()),
               MatchData(pcre2_match_data_create(1, nullptr)),
               MatchContext(pcre2_match_context_create(nullptr)),
               JitStack(pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr))})) {
  const size_t limit = std::max<size_t>(kMinMatchLimit, 16 * text_bytes);
  pcre2_set_match_limit(impl_->context.get(), static_cast<uint32_t>(std::min<size_t>(limit, ~0U)));
  pcre2_set_heap_limit(impl_->context.get(), kHeapLimitKib);
  pcre2_jit_stack_assign(impl_->context.get(), nullptr, impl_->stack.get());
}
Regex::Matcher::~Matcher() = default;
Regex::Matcher::Matcher(Matcher&&) noexcept = default;

std::optional<Regex::Range> Regex::Matcher::find(std::string_view text,
                                                 size_t from,
                                                 bool after_match) const {
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto run = [&](size_t start) -> std::optional<Range> {
    // pcre2_match checks its arguments anew for every piece, which costs as much as matching one.
    const auto match = [&](auto* how, uint32_t options) {
      return how(impl_->code,
                 subject,
                 text.size(),
                 start,
                 options,
                 impl_->data.get(),
                 impl_->context.get());
    };
    int rc = impl_->compiled ? match(pcre2_jit_match, 0) : PCRE2_ERROR_JIT_STACKLIMIT;
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
      rc = match(pcre2_match, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(impl_->data.get());
    if (rc < 0 || range[0] < start || range[1] < range[0]) return std::nullopt;
    return Range{range[0], range[1]};
  };
  auto found = run(from);
  if (found && after_match && found->first == from && found->second == from) {
    if (from == text.size()) return std::nullopt;
    found = run(from + utf8::next(text, from).length);
  }
  return found;
}

std::string regex_literal(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view(R"(\^$.[]|()?*+{}#-/)").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace headwater
