// Tokenizer: text <-> ids. Pure functions of the vocabulary; every method is thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "engine/text/normalizer.h"
#include "engine/text/pre_tokenizer.h"
#include "engine/text/special_splitter.h"

namespace headwater {

enum class TokenKind : uint8_t { kNormal, kUnknown, kControl, kUserDefined, kUnused, kByte };

// Kinds that plain text never becomes.
inline bool is_hidden(TokenKind kind) {
  return kind == TokenKind::kControl || kind == TokenKind::kUnknown;
}
// Kinds whose text is found in the input before anything else happens to it.
inline bool is_special(TokenKind kind) {
  return is_hidden(kind) || kind == TokenKind::kUserDefined;
}

// What a special token does to the text around it.
struct SpecialRule {
  bool strips_left = false, strips_right = false;  // takes the white space beside it
  bool single_word = false;                        // does not count inside a word
  bool normalized = false;                         // is looked for in the normalised text
};

// What a vocabulary file says, whatever its format (GGUF metadata or tokenizer.json).
struct Vocabulary {
  // "bpe": byte-level BPE; "char-bpe": the same over characters; "spm": BPE over characters ranked
  // by score (SentencePiece); "unigram".
  std::string model;
  std::string pre;  // name of the pre-tokenizer, if it has one: "smollm", "gpt-2", ...
  std::vector<NormalizerStep> normalizer;
  std::vector<PreStep> pre_steps;
  std::vector<std::string> tokens;  // [V], as stored (byte-level: mapped characters)
  std::vector<TokenKind> kinds;     // [V]
  std::vector<double> scores;       // [V] (spm, unigram) or empty
  std::vector<std::string> merges;  // "left right", best first
  std::unordered_map<int32_t, SpecialRule> special_rules;  // those that are not the default
  std::unordered_set<int32_t> beside_model;  // special tokens that the model does not know
  SpecialSplitter::Order special_order = SpecialSplitter::Order::kLeftmost;

  bool ignore_merges = false;      // a whole piece that is a token is emitted as such
  bool last_merge_wins = false;    // of merges that are listed twice
  bool byte_fallback = false;      // a character without a token becomes the tokens of its bytes
  bool fuse_unknown = false;       // a run of unknown characters is one unknown token
  bool drop_unknown = false;       // they are nothing
  bool free_user_defined = false;  // unigram: tokens of the user cost nothing

  std::string space;           // what stands for a space in tokens, "" if nothing does
  bool leading_space = false;  // decoding drops one space at the start of a text

  int32_t bos = -1, eos = -1, unknown = -1, pad = -1;
  std::vector<int32_t> eog;  // further end-of-generation ids the files name
  bool add_bos = false, add_eos = false;
  std::vector<int32_t> before, after;  // what surrounds a text, if more than those two
  std::string source;                  // file, for messages

  // The byte that a token of kind kByte stands for ("<0x0A>"), or -1.
  int byte_of(int32_t id) const;
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
  virtual SpecialRule special_rule(int32_t /*id*/) const { return {}; }
  virtual int32_t vocab_size() const = 0;
  virtual int32_t bos() const = 0;  // -1: none
  virtual int32_t eos() const = 0;
  virtual bool adds_bos() const = 0;
  // End-of-generation ids (eos, eot, and the well-known texts such as <|im_end|>).
  virtual const std::vector<int32_t>& eog_ids() const = 0;
  // Decoding from the start of a text drops its first space: encoding put it there.
  virtual bool drops_leading_space() const { return false; }
  virtual int32_t find(std::string_view token) const = 0;  // -1: no such token
};

// A text that ends a turn in published models: "<|im_end|>" and the like.
bool ends_generation(std::string_view text);

// Throws LoadError: unknown model or pre-tokenizer (named), broken merges, ids out of range.
std::unique_ptr<Tokenizer> make_tokenizer(Vocabulary vocabulary);

}  // namespace headwater
