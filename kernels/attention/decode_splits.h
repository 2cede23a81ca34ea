// How a decode step shares its lists of keys out over blocks of a GPU. Pure host code; any thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace headwater {

struct DecodeSplits {
  int32_t splits = 1;       // blocks of a list, at most
  int32_t split_tiles = 1;  // tiles of keys, at least, that are worth a block
};

// lists: one for each (row, KV head, tile of its queries). longest: pieces of the longest of them,
// of piece_tiles tiles each; 1 where all are read at once, however long. slots: blocks that run at
// once. Where pieces fill the slots more than once, they are made a little larger or smaller so
// that they do so a whole number of times; where not, as many blocks as fit share each list.
inline DecodeSplits split_lists(
    int64_t lists, int64_t longest, int64_t slots, int64_t most_splits, int32_t piece_tiles) {
  constexpr int64_t kFewestTiles = 2;
  const int64_t waves = std::max<int64_t>(1, (lists * longest + slots / 2) / slots);
  const int64_t splits = std::max<int64_t>(1, std::min(waves * slots / lists, most_splits));
  const int64_t tiles =
      waves > 1 ? std::max(kFewestTiles, longest * piece_tiles / splits) : kFewestTiles;
  return {static_cast<int32_t>(splits), static_cast<int32_t>(tiles)};
}

}  // namespace headwater
