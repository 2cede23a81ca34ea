// Tokenizer: text <-> ids. Pure functions of the vocabulary; every method is thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace headwater {

enum class TokenKind : uint8_t { kNormal, kUnknown, kControl, kUserDefined, kUnused, kByte };

// What a vocabulary file says, whatever its format (GGUF metadata or tokenizer.json).
struct Vocabulary {
  std::string model;                   // "bpe" (byte-level BPE)
  std::string pre;                     // name of the pre-tokenizer: "smollm", "gpt-2", ...
  std::vector<std::string> pre_regex;  // instead of pre: explicit stages from tokenizer.json
  std::vector<std::string> tokens;     // [V], as stored (byte-level: mapped characters)
  std::vector<TokenKind> kinds;        // [V]
  std::vector<float> scores;           // [V] or empty
  std::vector<std::string> merges;     // "left right", best first
  bool ignore_merges = false;          // a whole piece that is a token is emitted as such
  int32_t bos = -1, eos = -1, unknown = -1, pad = -1;
  std::vector<int32_t> eog;  // further end-of-generation ids the files name
  bool add_bos = false, add_eos = false;
  std::string source;  // file, for messages
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // add_special: bos/eos as the vocabulary says. parse_special: the text of control tokens becomes
  // those tokens (templates: yes; user text: never).
  virtual std::vector<int32_t> encode(std::string_view text,
                                      bool add_special,
                                      bool parse_special) const = 0;
  // Bytes of one token: exactly what it adds to the text; may be part of a UTF-8 character.
  // Control tokens give "" unless with_special.
  virtual std::string token_bytes(int32_t id, bool with_special) const = 0;
  // The token as the vocabulary spells it (for logprobs and /tokenize).
  virtual std::string_view token_text(int32_t id) const = 0;
  virtual bool is_control(int32_t id) const = 0;
  virtual int32_t vocab_size() const = 0;
  virtual int32_t bos() const = 0;  // -1: none
  virtual int32_t eos() const = 0;
  virtual bool adds_bos() const = 0;
  // End-of-generation ids (eos, eot, and the well-known texts such as <|im_end|>).
  virtual const std::vector<int32_t>& eog_ids() const = 0;
  virtual int32_t find(std::string_view token) const = 0;  // -1: no such token
};

// Throws LoadError: unknown model or pre-tokenizer (named), broken merges, ids out of range.
std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary);

}  // namespace headwater
