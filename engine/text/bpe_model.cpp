#include "engine/text/bpe_model.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <map>
#include <queue>

#include "engine/text/byte_level.h"
#include "engine/text/utf8.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

// Up to here scanning all pairs for the best beats a heap.
constexpr size_t kShortPiece = 32;
constexpr int32_t kUnknownSymbol = -1;
constexpr int32_t kMerged = INT32_MIN;  // a symbol that its left neighbour took in

// Places where a merge of one rank may happen, smallest first. Sweeps over a text offer them in
// order: those wait in line, and only the others need a heap.
class Places {
 public:
  bool empty() const { return next_ == in_order_.size() && others_.empty(); }
  void push(uint32_t place) {
    if (next_ == in_order_.size()) {
      in_order_.clear();
      next_ = 0;
    }
    if (in_order_.empty() || place >= in_order_.back()) {
      in_order_.push_back(place);
    } else {
      others_.push(place);
    }
  }
  uint32_t pop() {
    if (others_.empty() || (next_ < in_order_.size() && in_order_[next_] <= others_.top())) {
      return in_order_[next_++];
    }
    const uint32_t place = others_.top();
    others_.pop();
    return place;
  }

 private:
  std::vector<uint32_t> in_order_;
  size_t next_ = 0;
  std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> others_;
};

}  // namespace

MergeTable::MergeTable(size_t num_merges)
    : slots_(std::bit_ceil(std::max<size_t>(2 * num_merges, 2))),
      shift_(64 - std::countr_zero(slots_.size())) {}

void MergeTable::add(int32_t left, int32_t right, Merge merge, bool replace) {
  const uint64_t pair = key(left, right);
  size_t i = slot_of(pair);
  while (slots_[i].pair != kEmpty) {
    if (slots_[i].pair == pair) {
      if (replace) slots_[i].merge = merge;
      return;
    }
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

BpeModel::BpeModel(const Vocabulary& vocabulary, const std::vector<std::string>& bytes)
    : vocabulary_(vocabulary),
      bytes_(bytes),
      byte_level_(vocabulary.model == "bpe"),
      fallback_(vocabulary),
      merges_(0) {
  index_tokens();
  if (vocabulary.model == "spm") {
    index_scores();
  } else {
    index_merges();
  }
  for (int c = 0; c < 128 && !byte_level_; ++c) {
    const char character = static_cast<char>(c);
    byte_ids_[c] = character_id({&character, 1});
  }
  index_whole_pieces();
}

void BpeModel::index_tokens() {
  by_text_.reserve(vocabulary_.tokens.size());
  for (size_t i = 0; i < vocabulary_.tokens.size(); ++i) {
    // Plain text must not become a control token, whatever the merges say, nor spell a byte.
    const bool spelled = vocabulary_.kinds[i] == TokenKind::kByte ||
                         vocabulary_.beside_model.contains(static_cast<int32_t>(i));
    if (is_hidden(vocabulary_.kinds[i]) || spelled) continue;
    by_text_.try_emplace(vocabulary_.tokens[i], static_cast<int32_t>(i));
    if (!byte_level_) seams_.add(vocabulary_.tokens[i]);
  }
  if (!byte_level_) return;
  for (int byte = 0; byte < 256; ++byte) {
    const auto it = by_text_.find(byte_level::character(static_cast<uint8_t>(byte)));
    const bool known =
        it != by_text_.end() && vocabulary_.kinds[it->second] != TokenKind::kUserDefined;
    // Negative and distinct: a missing byte takes part in no merge.
    byte_ids_[byte] = known ? it->second : kUnknownSymbol - byte;
  }
}

void BpeModel::index_merges() {
  merges_ = MergeTable(vocabulary_.merges.size());
  const auto broken = [&](size_t i, const std::string& why) {
    return LoadError(vocabulary_.source + ": merge " + std::to_string(i) + " (\"" +
                     utf8::sanitize(vocabulary_.merges[i].substr(0, 80)) + "\") " + why);
  };
  // Every token, hidden ones too: a merge of those is skipped, not an error.
  std::unordered_map<std::string_view, int32_t> all;
  all.reserve(vocabulary_.tokens.size());
  for (size_t i = 0; i < vocabulary_.tokens.size(); ++i) {
    all.try_emplace(vocabulary_.tokens[i], static_cast<int32_t>(i));
  }
  const auto find = [&](std::string_view text) {
    const auto it = all.find(text);
    return it == all.end() ? -1 : it->second;
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
    if (is_hidden(vocabulary_.kinds[id])) continue;
    merges_.add(left, right, {static_cast<uint32_t>(i), id}, vocabulary_.last_merge_wins);
  }
}

// Every way to join two symbols to a token, ranked by the token's score.
void BpeModel::index_scores() {
  const auto& tokens = vocabulary_.tokens;
  std::vector<int32_t> order;
  for (const auto& [text, id] : by_text_) order.push_back(id);
  std::ranges::sort(order, [&](int32_t a, int32_t b) {
    return vocabulary_.scores[a] != vocabulary_.scores[b]
               ? vocabulary_.scores[a] > vocabulary_.scores[b]
               : a < b;
  });
  struct Join {
    int32_t left, right;
    MergeTable::Merge merge;
  };
  std::vector<Join> joins;
  const auto symbol = [&](std::string_view part) {
    if (const auto it = by_text_.find(part); it != by_text_.end()) return it->second;
    if (utf8::next(part, 0).length != part.size()) return kUnknownSymbol;
    const auto id = kUnknownSymbol - 1 - static_cast<int32_t>(loose_characters_.size());
    return loose_characters_.try_emplace(part, id).first->second;
  };
  uint32_t rank = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    // Equal scores are equal ranks.
    if (i > 0 && vocabulary_.scores[order[i]] != vocabulary_.scores[order[i - 1]]) ++rank;
    const std::string_view text = tokens[order[i]];
    for (size_t cut = 0; (cut += utf8::next(text, cut).length) < text.size();) {
      const int32_t left = symbol(text.substr(0, cut)), right = symbol(text.substr(cut));
      if (left == kUnknownSymbol || right == kUnknownSymbol) continue;
      joins.push_back({left, right, {rank, order[i]}});
    }
  }
  merges_ = MergeTable(joins.size());
  for (const Join& join : joins) merges_.add(join.left, join.right, join.merge, false);
}

void BpeModel::index_whole_pieces() {
  whole_pieces_.reserve(bytes_.size());
  std::vector<int32_t> merged;
  for (size_t i = 0; i < bytes_.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    // A byte-level piece is bytes; others are looked up as the vocabulary spells them.
    const std::string_view piece = byte_level_ ? bytes_[i] : vocabulary_.tokens[i];
    if (vocabulary_.kinds[i] != TokenKind::kNormal || piece.empty()) continue;
    if (!vocabulary_.ignore_merges) {
      merged.clear();
      bool run = false;
      merge(piece, run, merged);
      if (merged != std::vector{id}) continue;
    }
    whole_pieces_.try_emplace(piece, id);
  }
}

int32_t BpeModel::character_id(std::string_view character) const {
  if (const auto it = by_text_.find(character); it != by_text_.end()) return it->second;
  const auto it = loose_characters_.find(character);
  return it == loose_characters_.end() ? kUnknownSymbol : it->second;
}

BpeModel::Symbol BpeModel::first_symbol(std::string_view text) const {
  const auto byte = static_cast<uint8_t>(text[0]);
  if (byte_level_ || byte < 128) return {byte_ids_[byte], 1};
  const size_t length = utf8::next(text, 0).length;
  return {character_id(text.substr(0, length)), static_cast<uint32_t>(length)};
}

void BpeModel::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  bool run = false;
  if (byte_level_ || (vocabulary_.ignore_merges && whole_pieces_.contains(piece))) {
    encode_stretch(piece, run, ids);
    return;
  }
  for (size_t pos = 0; pos < piece.size();) {
    const size_t end = seams_.next_seam(piece, pos);
    encode_stretch(piece.substr(pos, end - pos), run, ids);
    pos = end;
  }
}

void BpeModel::encode_byte(uint8_t byte, std::vector<int32_t>& ids) const {
  if (byte_level_) {
    bool run = false;
    const char c = static_cast<char>(byte);
    emit({byte_ids_[byte], 1}, {&c, 1}, run, ids);
  } else {
    fallback_.encode_byte(byte, ids);
  }
}

void BpeModel::encode_stretch(std::string_view text, bool& run, std::vector<int32_t>& ids) const {
  if (const auto whole = whole_pieces_.find(text); whole != whole_pieces_.end()) {
    ids.push_back(whole->second);
    run = false;
  } else {
    merge(text, run, ids);
  }
}

void BpeModel::merge(std::string_view text, bool& run, std::vector<int32_t>& ids) const {
  text.size() <= kShortPiece ? merge_short(text, run, ids) : merge_long(text, run, ids);
}

void BpeModel::merge_short(std::string_view text, bool& run, std::vector<int32_t>& ids) const {
  std::array<Symbol, kShortPiece> symbols;
  std::array<MergeTable::Merge, kShortPiece> merges;  // of symbols i and i + 1
  size_t size = 0;
  for (size_t pos = 0; pos < text.size(); pos += symbols[size++].length) {
    symbols[size] = first_symbol(text.substr(pos));
  }
  const auto merge_at = [&](size_t i) { return merges_.find(symbols[i].id, symbols[i + 1].id); };
  for (size_t i = 0; i + 1 < size; ++i) merges[i] = merge_at(i);

  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == MergeTable::kNoRank) break;
    symbols[best] = {merges[best].id, symbols[best].length + symbols[best + 1].length};
    std::copy(symbols.data() + best + 2, symbols.data() + size, symbols.data() + best + 1);
    std::copy(merges.data() + best + 1, merges.data() + size - 1, merges.data() + best);
    --size;
    if (best > 0) merges[best - 1] = merge_at(best - 1);
    if (best + 1 < size) merges[best] = merge_at(best);
  }
  for (size_t i = 0, pos = 0; i < size; pos += symbols[i++].length) {
    emit(symbols[i], text.substr(pos), run, ids);
  }
}

void BpeModel::merge_long(std::string_view text, bool& run, std::vector<int32_t>& ids) const {
  constexpr uint32_t kNone = ~0U;
  struct Link {
    Symbol symbol;
    uint32_t prev, next;
  };
  std::vector<Link> links;
  links.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Symbol symbol = first_symbol(text.substr(pos));
    const auto here = static_cast<uint32_t>(links.size());
    links.push_back({symbol, here - 1, here + 1});  // the first prev is kNone
    pos += symbol.length;
  }
  links.back().next = kNone;

  const auto merge_of = [&](uint32_t left) {
    const uint32_t right = links[left].next;
    if (right == kNone) return MergeTable::Merge{};
    return merges_.find(links[left].symbol.id, links[right].symbol.id);
  };
  std::map<uint32_t, Places> ranks;
  const auto offer = [&](uint32_t left) {
    const uint32_t rank = merge_of(left).rank;
    if (rank != MergeTable::kNoRank) ranks[rank].push(left);
  };
  for (uint32_t i = 0; i < links.size(); ++i) offer(i);

  while (!ranks.empty()) {
    const auto best = ranks.begin();
    const uint32_t rank = best->first, at = best->second.pop();
    if (best->second.empty()) ranks.erase(best);
    Link& left = links[at];
    // Stale: one of the two has merged since, unless they make a merge of this rank again.
    if (left.symbol.id == kMerged) continue;
    const MergeTable::Merge merge = merge_of(at);
    if (merge.rank != rank) continue;
    Link& right = links[left.next];
    left.symbol = {merge.id, left.symbol.length + right.symbol.length};
    left.next = right.next;
    right.symbol.id = kMerged;
    if (left.next != kNone) links[left.next].prev = at;
    if (left.prev != kNone) offer(left.prev);
    offer(at);
  }
  size_t pos = 0;
  for (uint32_t i = 0; i != kNone; i = links[i].next) {
    emit(links[i].symbol, text.substr(pos), run, ids);
    pos += links[i].symbol.length;
  }
}

void BpeModel::emit(Symbol symbol,
                    std::string_view text,
                    bool& run,
                    std::vector<int32_t>& ids) const {
  if (symbol.id >= 0) {
    ids.push_back(symbol.id);
    run = false;
  } else {
    fallback_.encode(text.substr(0, symbol.length), run, ids);
  }
}

}  // namespace headwater
