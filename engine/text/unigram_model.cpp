#include "engine/text/unigram_model.h"

#include <algorithm>
#include <bit>

#include "engine/text/utf8.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr double kUnknownPenalty = 10.0;

bool is_piece(TokenKind kind) {
  return kind == TokenKind::kNormal || kind == TokenKind::kUserDefined ||
         kind == TokenKind::kUnused;
}

}  // namespace

UnigramModel::UnigramModel(const Vocabulary& vocabulary)
    : scores_(vocabulary.scores), unknown_(vocabulary.unknown), fallback_(vocabulary) {
  if (unknown_ < 0) {
    throw LoadError(vocabulary.source + ": a Unigram vocabulary needs an unknown token");
  }
  size_t num_bytes = 0;
  for (const std::string& token : vocabulary.tokens) num_bytes += token.size();
  edges_.resize(std::bit_ceil(std::max<size_t>(2 * num_bytes, 2)));
  shift_ = 64 - std::countr_zero(edges_.size());
  bool any = false;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const TokenKind kind = vocabulary.kinds[i];
    if (kind == TokenKind::kNormal) {
      unknown_score_ = any ? std::min(unknown_score_, scores_[i]) : scores_[i];
      any = true;
    }
    if (!is_piece(kind) || vocabulary.beside_model.contains(static_cast<int32_t>(i))) continue;
    // A token of the user is taken wherever it fits: normal scores are below zero.
    if (kind == TokenKind::kUserDefined && vocabulary.free_user_defined) scores_[i] = 0;
    insert(vocabulary.tokens[i], static_cast<int32_t>(i));
    seams_.add(vocabulary.tokens[i]);
  }
  unknown_score_ -= kUnknownPenalty;
}

const UnigramModel::Edge* UnigramModel::find(uint32_t node, char byte) const {
  const uint64_t key = uint64_t{node} << 8 | static_cast<uint8_t>(byte);
  for (size_t i = (key * 0x9E3779B97F4A7C15u) >> shift_; edges_[i].key != kEmpty;
       i = (i + 1) & (edges_.size() - 1)) {
    if (edges_[i].key == key) return &edges_[i];
  }
  return nullptr;
}

void UnigramModel::insert(std::string_view text, int32_t id) {
  uint32_t node = 0;
  Edge* edge = nullptr;
  for (const char byte : text) {
    const uint64_t key = uint64_t{node} << 8 | static_cast<uint8_t>(byte);
    size_t i = (key * 0x9E3779B97F4A7C15u) >> shift_;
    while (edges_[i].key != kEmpty && edges_[i].key != key) i = (i + 1) & (edges_.size() - 1);
    edge = &edges_[i];
    if (edge->key == kEmpty) *edge = {key, num_nodes_++, -1};
    node = edge->node;
  }
  if (edge != nullptr && edge->token < 0) edge->token = id;
}

void UnigramModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  std::vector<Node> nodes;
  double score = 0;
  bool run = false;
  for (size_t pos = 0; pos < piece.size();) {
    // Every path passes through a seam, so the sums go on from there exactly as over the whole.
    const size_t end = seams_.next_seam(piece, pos);
    score = encode_stretch(piece.substr(pos, end - pos), score, nodes, run, ids);
    pos = end;
  }
}

double UnigramModel::encode_stretch(std::string_view text,
                                    double score,
                                    std::vector<Node>& nodes,
                                    bool& run,
                                    std::vector<int32_t>& ids) const {
  nodes.assign(text.size() + 1, Node{});
  nodes[0].score = score;
  const auto offer = [&](size_t end, double sum, int32_t token, size_t begin) {
    Node& node = nodes[end];
    if (node.token != kNone && sum <= node.score) return;
    node = {sum, token, static_cast<uint32_t>(begin)};
  };
  for (size_t begin = 0; begin < text.size();) {
    const size_t length = utf8::next(text, begin).length;
    const double sum = nodes[begin].score;
    bool covered = false;
    uint32_t at = 0;
    for (size_t end = begin; end < text.size();) {
      const Edge* edge = find(at, text[end]);
      if (edge == nullptr) break;
      ++end;
      at = edge->node;
      if (edge->token < 0) continue;
      offer(end, sum + scores_[edge->token], edge->token, begin);
      covered |= end == begin + length;
    }
    if (!covered) offer(begin + length, sum + unknown_score_, kUnknownCharacter, begin);
    begin += length;
  }

  // Back from the end, then the ids in order.
  std::vector<std::pair<size_t, size_t>> path;
  for (size_t end = text.size(); end > 0; end = nodes[end].begin) {
    path.emplace_back(nodes[end].begin, end);
  }
  for (auto step = path.rbegin(); step != path.rend(); ++step) {
    const int32_t token = nodes[step->second].token;
    if (token >= 0) {
      ids.push_back(token);
      run = false;
    } else {
      fallback_.encode(text.substr(step->first, step->second - step->first), run, ids);
    }
  }
  return nodes[text.size()].score;
}

}  // namespace headwater
