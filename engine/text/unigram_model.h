// UnigramModel: the segmentation with the highest sum of scores (Viterbi; Kudo, "Subword
// Regularization", 2018). A character that no token covers costs the lowest score less ten and
// becomes the unknown token; runs of those become one. Sums are doubles, as in the two published
// implementations, so that near ties fall the same way.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/text/token_model.h"

namespace headwater {

class UnigramModel final : public TokenModel {
 public:
  // Throws LoadError: no unknown token. vocabulary need not outlive the model.
  explicit UnigramModel(const Vocabulary& vocabulary);

  void encode(std::string_view piece, std::vector<int32_t>& ids) const override;
  void encode_byte(uint8_t byte, std::vector<int32_t>& ids) const override {
    fallback_.encode_byte(byte, ids);
  }

 private:
  // A trie in one table, open addressing: (node, byte) -> node.
  struct Edge {
    uint64_t key = kEmpty;
    uint32_t node = 0;
    int32_t token = -1;  // that ends at the node
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  const Edge* find(uint32_t node, char byte) const;
  void insert(std::string_view text, int32_t id);

  // The best path into the end of one character of a stretch.
  struct Node {
    double score = 0;
    int32_t token = kNone;
    uint32_t begin = 0;
  };
  static constexpr int32_t kNone = -1, kUnknownCharacter = -2;
  // Returns the sum at its end, starting from the one at its begin.
  double encode_stretch(std::string_view text,
                        double score,
                        std::vector<Node>& nodes,
                        bool& run,
                        std::vector<int32_t>& ids) const;

  std::vector<Edge> edges_;
  int shift_ = 0;
  uint32_t num_nodes_ = 1;
  std::vector<double> scores_;  // by token
  double unknown_score_ = 0;
  int32_t unknown_;
  Fallback fallback_;
  Seams seams_;
};

}  // namespace headwater
