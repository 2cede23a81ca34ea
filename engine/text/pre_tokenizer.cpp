#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/pre_tokenizer.h"

#include <pcre2.h>

#include <algorithm>
#include <array>

#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr size_t kMaxStages = 16;
constexpr size_t kMaxPatternBytes = 8192;
constexpr uint32_t kMaxNesting = 64;
constexpr uint32_t kMinMatchLimit = 1'000'000;
constexpr uint32_t kHeapLimitKib = 65536;
constexpr size_t kJitStackStart = 32 << 10, kJitStackMax = 1 << 20;

constexpr const char* kDigit = R"(\p{N})";
constexpr const char* kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"('[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"('[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Row {
  const char* name;
  std::vector<std::string> stages;
};

const std::vector<Row>& table() {
  static const std::vector<Row> kTable = {
      {"gpt-2", {kGpt2}},
      {"phi-2", {kGpt2}},
      {"mpt", {kGpt2}},
      {"olmo", {kGpt2}},
      {"jais", {kGpt2}},
      {"smollm", {kDigit, kGpt2}},
      {"starcoder", {kDigit, kGpt2}},
      {"refact", {kDigit, kGpt2}},
      {"command-r", {kDigit, kGpt2}},
      {"codeshell", {kDigit, kGpt2}},
      {"exaone", {kDigit, kGpt2}},
      {"mellum2", {kDigit, kGpt2}},
      {"minerva-7b", {kDigit, kGpt2}},
      {"llama-bpe", {kLlama3}},
      {"llama3", {kLlama3}},
      {"llama-v3", {kLlama3}},
      {"falcon3", {kLlama3}},
      {"pixtral", {kLlama3}},
      {"lfm2", {kLlama3}},
      {"qwen2", {kQwen2}},
      {"deepseek-r1-qwen", {kQwen2}},
      {"stablelm2", {kQwen2}},
  };
  return kTable;
}

// PCRE2's \s holds U+180E, which Unicode took out of White_Space; the tokenizers' engines follow
// Unicode. Escapes keep their meaning inside and outside of classes.
std::string with_unicode_spaces(std::string_view pattern) {
  constexpr std::string_view kSpaces =
      R"(\x09-\x0D\x20\x85\xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        out.append(in_class ? "" : "[").append(kSpaces).append(in_class ? "" : "]");
      } else if (escaped == 'S' && !in_class) {
        out.append("[^").append(kSpaces).append("]");
      } else {
        out.append({c, escaped});
      }
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

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

Code compile(const std::string& stage, const std::string& source) {
  const auto fail = [&](const std::string& why) -> LoadError {
    return LoadError(source + ": pre-tokenizer expression " + why + ": " + stage.substr(0, 200));
  };
  if (stage.empty()) throw fail("is empty");
  const std::string pattern = with_unicode_spaces(stage);
  CompileContext context(pcre2_compile_context_create(nullptr));
  pcre2_set_max_pattern_length(context.get(), kMaxPatternBytes);
  pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                          pattern.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                          &error,
                          &offset,
                          context.get()));
  if (!code) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    throw fail("does not compile (" + std::string(reinterpret_cast<char*>(message.data())) + ")");
  }
  // Without JIT (an unsupported machine or pattern) matching falls back to the interpreter.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

}  // namespace

class PreTokenizer::Stage {
 public:
  explicit Stage(Code code) : code_(std::move(code)) {}

  // What one split() call needs; a compiled stage is shared between threads.
  class Matcher {
   public:
    Matcher(const Stage& stage, pcre2_jit_stack* stack, size_t text_bytes)
        : code_(stage.code_.get()),
          data_(pcre2_match_data_create(1, nullptr)),
          context_(pcre2_match_context_create(nullptr)) {
      const size_t limit = std::max<size_t>(kMinMatchLimit, 16 * text_bytes);
      pcre2_set_match_limit(context_.get(), static_cast<uint32_t>(std::min<size_t>(limit, ~0U)));
      pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
      pcre2_jit_stack_assign(context_.get(), nullptr, stack);
    }

    // The next non-empty match at or after `from`, as [begin, end); {size, size} if none.
    std::pair<size_t, size_t> find(std::string_view text, size_t from) {
      const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
      const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
      int rc = pcre2_match(code_, subject, text.size(), from, options, data_.get(), context_.get());
      if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
        rc = pcre2_match(
            code_, subject, text.size(), from, options | PCRE2_NO_JIT, data_.get(), context_.get());
      }
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data_.get());
      if (rc < 0 || range[0] < from || range[1] <= range[0]) return {text.size(), text.size()};
      return {range[0], range[1]};
    }

   private:
    const pcre2_code* code_;
    MatchData data_;
    MatchContext context_;
  };

 private:
  Code code_;
};

std::vector<std::string> PreTokenizer::stages_of(const std::string& name,
                                                 const std::string& source) {
  std::string known;
  for (const Row& row : table()) {
    if (name == row.name) return row.stages;
    known.append(known.empty() ? "" : ", ").append(row.name);
  }
  throw LoadError(source + ": pre-tokenizer \"" + name + "\" is not known; known: " + known);
}

PreTokenizer::PreTokenizer(const std::vector<std::string>& stages, const std::string& source) {
  if (stages.size() > kMaxStages) {
    throw LoadError(source + ": " + std::to_string(stages.size()) +
                    " pre-tokenizer stages, expected at most " + std::to_string(kMaxStages));
  }
  for (const std::string& stage : stages) {
    stages_.push_back(std::make_unique<Stage>(compile(stage, source)));
  }
}

PreTokenizer::~PreTokenizer() = default;

void PreTokenizer::split(std::string_view text,
                         const std::function<void(std::string_view)>& piece) const {
  JitStack stack(pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr));
  std::vector<Stage::Matcher> matchers;
  matchers.reserve(stages_.size());
  for (const auto& stage : stages_) matchers.emplace_back(*stage, stack.get(), text.size());

  const auto run = [&](const auto& self, std::string_view part, size_t stage) -> void {
    if (part.empty()) return;
    if (stage == matchers.size()) {
      piece(part);
      return;
    }
    for (size_t pos = 0; pos < part.size();) {
      const auto [begin, end] = matchers[stage].find(part, pos);
      self(self, part.substr(pos, begin - pos), stage + 1);
      self(self, part.substr(begin, end - begin), stage + 1);
      pos = end;
    }
  };
  run(run, text, 0);
}

}  // namespace headwater
