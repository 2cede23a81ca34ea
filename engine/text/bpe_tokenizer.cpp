#include "engine/text/bpe_tokenizer.h"

#include <algorithm>
#include <bit>
#include <queue>

#include "engine/text/byte_level.h"
#include "engine/text/utf8.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

// Up to here scanning all pairs for the best beats a heap.
constexpr size_t kShortPiece = 32;

bool is_special(TokenKind kind) {
  return kind == TokenKind::kControl || kind == TokenKind::kUnknown ||
         kind == TokenKind::kUserDefined;
}

bool is_hidden(TokenKind kind) {
  return kind == TokenKind::kControl || kind == TokenKind::kUnknown;
}

std::vector<std::string> stages_of(const Vocabulary& vocabulary) {
  if (!vocabulary.pre_regex.empty()) return vocabulary.pre_regex;
  return PreTokenizer::stages_of(vocabulary.pre, vocabulary.source);
}

}  // namespace

MergeTable::MergeTable(size_t num_merges)
    : slots_(std::bit_ceil(std::max<size_t>(2 * num_merges, 2))),
      shift_(64 - std::countr_zero(slots_.size())) {}

void MergeTable::add(int32_t left, int32_t right, Merge merge) {
  const uint64_t pair = key(left, right);
  size_t i = slot_of(pair);
  while (slots_[i].pair != kEmpty) {
    if (slots_[i].pair == pair) return;
    i = (i + 1) & (slots_.size() - 1);
  }
  slots_[i] = {pair, merge};
}

MergeTable::Merge MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t pair = key(left, right);
  for (size_t i = slot_of(pair); slots_[i].pair != kEmpty; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].pair == pair) return slots_[i].merge;
  }
  return {};
}

BpeTokenizer::BpeTokenizer(Vocabulary vocabulary, std::vector<int32_t> eog)
    : vocabulary_(std::move(vocabulary)),
      eog_(std::move(eog)),
      pre_tokenizer_(stages_of(vocabulary_), vocabulary_.source),
      merges_(vocabulary_.merges.size()) {
  index_tokens();
  index_merges();
  index_whole_pieces();
}

void BpeTokenizer::index_tokens() {
  const size_t num_tokens = vocabulary_.tokens.size();
  bytes_.reserve(num_tokens);
  by_text_.reserve(num_tokens);
  for (size_t i = 0; i < num_tokens; ++i) {
    const std::string& text = vocabulary_.tokens[i];
    const TokenKind kind = vocabulary_.kinds[i];
    const auto id = static_cast<int32_t>(i);
    by_text_.try_emplace(text, id);
    bytes_.push_back(is_special(kind) ? text : byte_level::decode(text).value_or(text));
    if (is_special(kind)) all_special_.add(text, id);
    if (kind == TokenKind::kUserDefined) user_defined_.add(text, id);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const int32_t id = find(byte_level::character(static_cast<uint8_t>(byte)));
    // Negative and distinct: a missing byte takes part in no merge.
    byte_ids_[byte] = id >= 0 && !is_special(vocabulary_.kinds[id]) ? id : -1 - byte;
  }
}

void BpeTokenizer::index_merges() {
  const auto broken = [&](size_t i, const std::string& why) {
    return LoadError(vocabulary_.source + ": merge " + std::to_string(i) + " (\"" +
                     utf8::sanitize(vocabulary_.merges[i].substr(0, 80)) + "\") " + why);
  };
  std::string joined;
  for (size_t i = 0; i < vocabulary_.merges.size(); ++i) {
    const std::string_view merge = vocabulary_.merges[i];
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == merge.size()) {
      throw broken(i, "is not of the form \"left right\"");
    }
    joined.assign(merge.substr(0, space)).append(merge.substr(space + 1));
    const int32_t left = find(merge.substr(0, space));
    const int32_t right = find(merge.substr(space + 1));
    const int32_t id = find(joined);
    if (left < 0 || right < 0 || id < 0) {
      throw broken(i, "joins or gives a text that is not a token of the vocabulary");
    }
    // Plain text must not become a control token, whatever the merges say.
    if (is_hidden(vocabulary_.kinds[id])) continue;
    merges_.add(left, right, {static_cast<uint32_t>(i), id});
  }
}

void BpeTokenizer::index_whole_pieces() {
  whole_pieces_.reserve(bytes_.size());
  std::vector<int32_t> merged;
  for (int32_t id = 0; id < vocab_size(); ++id) {
    if (vocabulary_.kinds[id] != TokenKind::kNormal || bytes_[id].empty()) continue;
    if (!vocabulary_.ignore_merges) {
      merged.clear();
      encode_piece(bytes_[id], merged);
      if (merged != std::vector{id}) continue;
    }
    whole_pieces_.try_emplace(bytes_[id], id);
  }
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text,
                                          bool add_special,
                                          bool parse_special) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 2);
  if (add_special && vocabulary_.add_bos) ids.push_back(vocabulary_.bos);
  const SpecialSplitter& specials = parse_special ? all_special_ : user_defined_;
  size_t pos = 0;
  while (const auto match = specials.find(text, pos)) {
    encode_text(text.substr(pos, match->begin - pos), ids);
    ids.push_back(match->id);
    pos = match->begin + match->length;
  }
  encode_text(text.substr(pos), ids);
  if (add_special && vocabulary_.add_eos) ids.push_back(vocabulary_.eos);
  return ids;
}

void BpeTokenizer::encode_text(std::string_view text, std::vector<int32_t>& ids) const {
  const auto encode_valid = [&](std::string_view valid) {
    if (valid.empty()) return;
    pre_tokenizer_.split(valid, [&](std::string_view piece) { encode_piece(piece, ids); });
  };
  size_t begin = 0, pos = 0;
  while (pos < text.size()) {
    const utf8::Step step = utf8::next(text, pos);
    if (step.validity != utf8::Validity::kValid) {
      encode_valid(text.substr(begin, pos - begin));
      for (char byte : text.substr(pos, step.length)) {
        emit(byte_ids_[static_cast<uint8_t>(byte)], ids);
      }
      begin = pos + step.length;
    }
    pos += step.length;
  }
  encode_valid(text.substr(begin));
}

void BpeTokenizer::encode_piece(std::string_view piece, std::vector<int32_t>& ids) const {
  if (const auto whole = whole_pieces_.find(piece); whole != whole_pieces_.end()) {
    ids.push_back(whole->second);
  } else if (piece.size() <= kShortPiece) {
    merge_short(piece, ids);
  } else {
    merge_long(piece, ids);
  }
}

void BpeTokenizer::merge_short(std::string_view piece, std::vector<int32_t>& ids) const {
  std::array<int32_t, kShortPiece> symbols;
  std::array<MergeTable::Merge, kShortPiece> merges;  // of symbols i and i + 1
  size_t size = piece.size();
  for (size_t i = 0; i < size; ++i) symbols[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i + 1 < size; ++i) merges[i] = merges_.find(symbols[i], symbols[i + 1]);

  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == MergeTable::kNoRank) break;
    symbols[best] = merges[best].id;
    std::copy(symbols.data() + best + 2, symbols.data() + size, symbols.data() + best + 1);
    std::copy(merges.data() + best + 1, merges.data() + size - 1, merges.data() + best);
    --size;
    if (best > 0) merges[best - 1] = merges_.find(symbols[best - 1], symbols[best]);
    if (best + 1 < size) merges[best] = merges_.find(symbols[best], symbols[best + 1]);
  }
  for (size_t i = 0; i < size; ++i) emit(symbols[i], ids);
}

void BpeTokenizer::merge_long(std::string_view piece, std::vector<int32_t>& ids) const {
  constexpr size_t kNone = ~size_t{0};
  struct Symbol {
    int32_t id;
    size_t prev, next;
  };
  struct Candidate {
    uint32_t rank;
    size_t left;
    int32_t left_id, right_id, merged;
    bool operator<(const Candidate& o) const {  // the top of the heap is the best
      return rank != o.rank ? rank > o.rank : left > o.left;
    }
  };
  std::vector<Symbol> symbols(piece.size());
  std::priority_queue<Candidate> heap;
  const auto offer = [&](size_t left) {
    const size_t right = symbols[left].next;
    if (right == kNone) return;
    const auto merge = merges_.find(symbols[left].id, symbols[right].id);
    if (merge.rank == MergeTable::kNoRank) return;
    heap.push({merge.rank, left, symbols[left].id, symbols[right].id, merge.id});
  };
  constexpr int32_t kMerged = -1000;  // a symbol that its left neighbour took in
  for (size_t i = 0; i < piece.size(); ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])],
                  i == 0 ? kNone : i - 1,
                  i + 1 == piece.size() ? kNone : i + 1};
  }
  for (size_t i = 0; i < piece.size(); ++i) offer(i);

  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbols[top.left];
    // Stale: one of the two has merged since.
    if (left.id != top.left_id || left.next == kNone || symbols[left.next].id != top.right_id) {
      continue;
    }
    Symbol& right = symbols[left.next];
    left.id = top.merged;
    left.next = right.next;
    right.id = kMerged;
    if (left.next != kNone) symbols[left.next].prev = top.left;
    if (left.prev != kNone) offer(left.prev);
    offer(top.left);
  }
  for (size_t i = 0; i != kNone; i = symbols[i].next) emit(symbols[i].id, ids);
}

void BpeTokenizer::emit(int32_t symbol, std::vector<int32_t>& ids) {
  // A byte without a token is dropped: the unknown token is special, and text never becomes that.
  if (symbol >= 0) ids.push_back(symbol);
}

std::string BpeTokenizer::token_bytes(int32_t id, bool with_special) const {
  if (!in_range(id) || (is_hidden(vocabulary_.kinds[id]) && !with_special)) return "";
  return bytes_[id];
}

std::string_view BpeTokenizer::token_text(int32_t id) const {
  return in_range(id) ? std::string_view(vocabulary_.tokens[id]) : std::string_view();
}

bool BpeTokenizer::is_control(int32_t id) const {
  return in_range(id) && is_hidden(vocabulary_.kinds[id]);
}

int32_t BpeTokenizer::find(std::string_view token) const {
  const auto it = by_text_.find(token);
  return it == by_text_.end() ? -1 : it->second;
}

}  // namespace headwater
