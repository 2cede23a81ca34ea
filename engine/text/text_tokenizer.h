// TextTokenizer: the road of a text to ids. Special tokens are cut out; what is left is normalised,
// cut into pieces by the pre-tokenizer, and each piece goes to the model. Bytes that are not UTF-8
// are pieces of their own.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/token_model.h"
#include "engine/text/tokenizer.h"

namespace headwater {

class TextTokenizer final : public Tokenizer {
 public:
  // vocabulary: checked; eog: sorted, within range. Throws LoadError.
  TextTokenizer(Vocabulary vocabulary, std::vector<int32_t> eog);
  TextTokenizer(const TextTokenizer&) = delete;  // the model refers to what is in here

  std::vector<int32_t> encode(std::string_view text,
                              bool add_special,
                              bool parse_special) const override;
  std::string token_bytes(int32_t id, bool with_special) const override;
  std::string_view token_text(int32_t id) const override;
  bool is_control(int32_t id) const override;
  SpecialRule special_rule(int32_t id) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(vocabulary_.tokens.size()); }
  int32_t bos() const override { return vocabulary_.bos; }
  int32_t eos() const override { return vocabulary_.eos; }
  bool adds_bos() const override;
  const std::vector<int32_t>& eog_ids() const override { return eog_; }
  bool drops_leading_space() const override { return vocabulary_.leading_space; }
  int32_t find(std::string_view token) const override;

 private:
  // A stretch of a text: one special token, or (id below zero) what is between them.
  struct Fragment {
    size_t begin, end;
    int32_t id;
  };

  std::string decoded(int32_t id) const;
  void index_specials();
  std::vector<Fragment> cut(std::string_view text,
                            const SpecialSplitter& specials,
                            bool parse_special) const;
  void encode_fragment(std::string_view text,
                       bool at_start,
                       bool parse_special,
                       std::vector<int32_t>& ids) const;
  void encode_text(std::string_view text, bool at_start, std::vector<int32_t>& ids) const;
  bool in_range(int32_t id) const { return id >= 0 && id < vocab_size(); }

  Vocabulary vocabulary_;
  std::vector<int32_t> eog_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  std::vector<std::string> bytes_;  // [V] what a token adds to the text
  // Found in the text as given, and in the text once it is normalised. With the leftmost order, all
  // special tokens: those not wanted are skipped, as the order says. Else those of one purpose.
  SpecialSplitter all_special_, user_defined_, normalized_;
  std::unordered_map<std::string_view, int32_t> by_text_;  // keys live in vocabulary_.tokens
  std::unique_ptr<TokenModel> model_;
};

}  // namespace headwater
