// THE table: the pre-tokenizers that GGUF files name (tokenizer.ggml.pre), as expressions. Each
// name stands for the expressions of the published tokenizer that bears it, or, for the older names
// that never had one, for those the format's reference implementation gives them.
#include <array>
#include <initializer_list>

#include "engine/text/pre_tokenizer.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

// Words, numbers, punctuation and spaces of GPT-2; a run of spaces leaves its last one to the word.
#define HW_GPT2 R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"
#define HW_CONTRACTIONS R"('[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define HW_SPACES R"(\s*[\r\n]+|\s+(?!\S)|\s+)"
// Words that change case inside are cut there.
#define HW_UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define HW_LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"
#define HW_CASED_WORDS(suffix)                                                               \
  R"([^\r\n\p{L}\p{N}]?)" HW_UPPER "*" HW_LOWER "+" suffix R"(|[^\r\n\p{L}\p{N}]?)" HW_UPPER \
  "+" HW_LOWER "*" suffix "|"
#define HW_ASCII_SIGNS R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~])"

constexpr const char* kGpt2 = HW_GPT2;
constexpr const char* kDigit = R"(\p{N})";
constexpr const char* kDigits3 = R"(\p{N}{1,3})";
constexpr const char* kThreeDigits = "[0-9][0-9][0-9]";
constexpr const char* kLines = R"([^\n]+|[\n]+)";
constexpr const char* kLlama3 =
    HW_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" HW_SPACES;
constexpr const char* kQwen2 =
    HW_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" HW_SPACES;
constexpr const char* kQwen35 = HW_CONTRACTIONS
    R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|)" HW_SPACES;
constexpr const char* kTurkish =
    R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" HW_SPACES;
constexpr const char* kMiniCpm5 =
    HW_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|)" HW_SPACES;
constexpr const char* kJais2 = HW_CONTRACTIONS
    R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|)"
    R"(\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|)"
    R"(\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})";
constexpr const char* kSeedCoder =
    HW_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|)" HW_SPACES;
constexpr const char* kBailing =
    R"('(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kExaoneMoe = HW_CONTRACTIONS
    R"(|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|)"
    R"(\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kTekken = HW_CASED_WORDS("") R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" HW_SPACES;
constexpr const char* kGpt4o = HW_CASED_WORDS(
    "(?:" HW_CONTRACTIONS ")?") R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" HW_SPACES;
constexpr const char* kYoutu =
    HW_CASED_WORDS("(?:" HW_CONTRACTIONS ")?") R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|)" HW_SPACES;
constexpr const char* kYoutuAsian =
    "[\uAC00-\uD7A3\u3131-\u318E]+|"
    "[\uFF01\u2026\u201C\u201D\u2018\u2019\u2014\uFF1A\uFF1B\uFF0C\u3001-\u303F\uFE30-\uFE4F]+|"
    "[\u3105-\u312F]+|[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+";
// As tekken and gpt-4o, with runs of Han apart.
#define HW_NOT_HAN(set, many) "(?:(?!\\p{Han})" set ")" many
constexpr const char* kKimiK2 =
    R"(\p{Han}+|[^\r\n\p{L}\p{N}]?)" HW_NOT_HAN(HW_UPPER, "*") HW_NOT_HAN(
        HW_LOWER, "+") "(?:" HW_CONTRACTIONS R"()?|[^\r\n\p{L}\p{N}]?)" HW_NOT_HAN(HW_UPPER, "+")
        HW_NOT_HAN(HW_LOWER, "*") "(?:" HW_CONTRACTIONS
                                  R"()?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)" HW_SPACES;

constexpr const char* kNewline = R"([\r\n])";
constexpr const char* kCjk = "[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\\x{D7FF}]+";
constexpr const char* kHanKana = "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+";
constexpr const char* kDeepSeekSigns =
    "\\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+";
// Letters of the cased scripts, as the tokenizer lists them.
constexpr const char* kDeepSeekLetters =
    R"(\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293})"
    R"(\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A})"
    R"(\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556})"
    R"(\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF})"
    R"(\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D})"
    R"(\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D})"
    R"(\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3})"
    R"(\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107})"
    R"(\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D})"
    R"(\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184})"
    R"(\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D})"
    R"(\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF})"
    R"(\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F})"
    R"(\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2})"
    R"(\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)";
constexpr const char* kDeepSeekV3 = HW_ASCII_SIGNS
    R"([A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|)" HW_SPACES;
constexpr const char* kSpark = HW_ASCII_SIGNS
    R"([A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kBloom = " ?[^(\\s|.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C)]+";
constexpr const char* kFalconSigns = R"([\p{P}\$\+<=>\^~\|`]+)";
constexpr const char* kOldSigns = R"([\p{P}\$\+<=>\^~\|]+)";

struct Row {
  const char* name;
  std::array<const char*, 6> expressions;  // up to the first null
};

constexpr Row kTable[] = {
    {"default", {kOldSigns, kGpt2, R"(\p{N}+)", kThreeDigits}},
    {"gpt-2", {kGpt2}},
    {"phi-2", {kGpt2}},
    {"mpt", {kGpt2}},
    {"olmo", {kGpt2}},
    {"jais", {kGpt2}},
    {"trillion", {kGpt2}},
    {"granite-docling", {kGpt2}},
    {"exaone4", {kGpt2}},
    {"mellum", {kGpt2}},
    {"gigachat", {kGpt2}},
    {"a.x-4.0", {kGpt2}},
    {"modern-bert", {kGpt2}},
    {"roberta-bpe", {kGpt2}},
    {"jina-es", {kGpt2}},
    {"jina-de", {kGpt2}},
    {"jina-v1-en", {kGpt2}},
    {"jina-v2-es", {kGpt2}},
    {"jina-v2-de", {kGpt2}},
    {"jina-v2-code", {kGpt2}},
    {"smollm", {kDigit, kGpt2}},
    {"starcoder", {kDigit, kGpt2}},
    {"refact", {kDigit, kGpt2}},
    {"command-r", {kDigit, kGpt2}},
    {"codeshell", {kDigit, kGpt2}},
    {"exaone", {kDigit, kGpt2}},
    {"mellum2", {kDigit, kGpt2}},
    {"minerva-7b", {kDigit, kGpt2}},
    {"falcon", {kFalconSigns, kGpt2, kThreeDigits}},
    {"llama-bpe", {kLlama3}},
    {"llama3", {kLlama3}},
    {"llama-v3", {kLlama3}},
    {"falcon3", {kLlama3}},
    {"falcon-h1", {kLlama3}},
    {"pixtral", {kLlama3}},
    {"midm-2.0", {kLlama3}},
    {"lfm2", {kLlama3}},
    {"jina-v5-nano", {kLlama3}},
    {"dbrx", {kLlama3}},
    {"smaug-bpe", {kLlama3}},
    {"glm4", {kLlama3}},
    {"chatglm-bpe", {kLlama3}},
    {"jais-2", {kJais2}},
    {"qwen2", {kQwen2}},
    {"deepseek-r1-qwen", {kQwen2}},
    {"stablelm2", {kQwen2}},
    {"kormo", {kQwen2}},
    {"f2llmv2", {kQwen2}},
    {"megrez", {kQwen2}},
    {"hunyuan", {kQwen2}},
    {"solar-open", {kQwen2}},
    {"grok-2", {kQwen2}},
    {"laguna", {kLines, kQwen2}},
    {"qwen35", {kQwen35}},
    {"ufakzeka", {kTurkish}},
    {"minicpm5", {kDigits3, kMiniCpm5}},
    {"seed-coder", {kSeedCoder}},
    {"bailingmoe", {kBailing}},
    {"bailingmoe2", {kBailing}},
    {"llada-moe", {kBailing}},
    {"exaone-moe", {kExaoneMoe}},
    {"tekken", {kTekken}},
    {"gpt-4o", {kGpt4o}},
    {"llama4", {kGpt4o}},
    {"kanana2", {kGpt4o}},
    {"talkie", {kGpt4o}},
    {"minimax-m2", {kGpt4o}},
    {"granite-embed-multi-97m", {kGpt4o}},
    {"kimi-k2", {kKimiK2}},
    {"youtu", {kYoutuAsian, kYoutu}},
    {"deepseek-llm", {kNewline, kDeepSeekLetters, kDeepSeekSigns, R"(\s+$)", kCjk, R"(\p{N}+)"}},
    {"deepseek-coder", {kNewline, R"(\s?\p{L}+)", R"(\s?\p{P}+)", kCjk, kDigit}},
    {"deepseek-v3", {kDigits3, kHanKana, kDeepSeekV3}},
    {"hunyuan-dense", {kDigits3, kHanKana, kDeepSeekV3}},
    {"joyai-llm", {kDigits3, kHanKana, kDeepSeekV3}},
    {"hy_v4", {kDigits3, kHanKana, kDeepSeekV3}},
    {"spark2_5", {kDigits3, kHanKana, kSpark, kDigit}},
    {"poro-chat", {kBloom}},
    {"bloom", {kBloom}},
    {"gpt3-finnish", {kBloom}},
    {"viking", {kBloom, kDigit}},
    {"chameleon",
     {"<sentinel:[0-9]+>",
      "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
      "([\\t\\n]|    |  )",
      kDigit,
      R"([\p{P}!-/:-@\[-`{-~])",
      kGpt2}},
    // Merged over whole lines, as SentencePiece does.
    {"gemma4", {kLines}},
};

}  // namespace

std::vector<PreStep> pre_steps_of(const std::string& name, const std::string& source) {
  std::string known;
  for (const Row& row : kTable) {
    known.append(known.empty() ? "" : ", ").append(row.name);
    if (name != row.name) continue;
    std::vector<PreStep> steps;
    for (const char* expression : row.expressions) {
      if (expression != nullptr) steps.push_back({.regex = expression});
    }
    return steps;
  }
  throw LoadError(source + ": pre-tokenizer \"" + name + "\" is not known; known: " + known);
}

}  // namespace headwater
