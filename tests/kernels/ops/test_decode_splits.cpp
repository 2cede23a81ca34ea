#include <catch2/catch.hpp>
#include <cmath>

#include "kernels/attention/decode_splits.h"

namespace headwater {
namespace {

constexpr int32_t kPieceTiles = 32;

TEST_CASE("Lists that all run at once are shared by as many blocks as fit") {
  for (const int64_t slots : {108, 264, 396})
    for (int64_t lists = 1; lists <= slots; ++lists) {
      const DecodeSplits s = split_lists(lists, 1, slots, 64, kPieceTiles);
      CAPTURE(slots, lists);
      REQUIRE(s.splits == std::min<int64_t>(64, slots / lists));
      REQUIRE(s.split_tiles == 2);
    }
}

TEST_CASE("Pieces of long lists fill the slots a whole number of times, nearly") {
  for (const int64_t slots : {108, 264, 396})
    for (int64_t lists = 1; lists <= 4096; lists += 7)
      for (const int64_t longest : {2, 3, 8, 16, 17, 48}) {
        const DecodeSplits s = split_lists(lists, longest, slots, 64, kPieceTiles);
        CAPTURE(slots, lists, longest, s.splits, s.split_tiles);
        REQUIRE(s.splits >= 1);
        REQUIRE(s.splits <= 64);
        // Enough tiles a block that the longest list needs no more blocks than there are, but for
        // the last, partial one.
        const int64_t tiles = longest * kPieceTiles;
        if (s.split_tiles > 2) REQUIRE(tiles / s.split_tiles >= s.splits);
        if (2 * lists * longest < 3 * slots || s.splits == 64) continue;  // one wave
        // Neither much longer nor much shorter than a piece.
        REQUIRE(s.split_tiles >= kPieceTiles / 2);
        REQUIRE((s.split_tiles <= 2 * kPieceTiles || s.splits == 1));
        const double waves = static_cast<double>(lists * s.splits) / static_cast<double>(slots);
        const double whole = std::ceil(waves - 1e-9);
        if (s.splits >= 4) REQUIRE(waves / whole > 0.75);
      }
}

TEST_CASE("Lists are never split into more pieces than results fit") {
  CHECK(split_lists(8, 64, 396, 5, kPieceTiles).splits == 5);
  CHECK(split_lists(1000, 1, 264, 64, kPieceTiles).splits == 1);
  CHECK(split_lists(1, 16, 264, 0, kPieceTiles).splits == 1);  // no room at all
}

// What was measured: kernels/lab/003.
TEST_CASE("The splits of an H100's benches") {
  CHECK(split_lists(64, 16, 396, 64, kPieceTiles).splits == 18);      // 8 x 32,768
  CHECK(split_lists(512, 1, 264, 64, kPieceTiles).splits == 1);       // 64 x 1,024
  CHECK(split_lists(512, 8, 396, 64, kPieceTiles).splits == 7);       // 64 of 16,384 at most
  CHECK(split_lists(41 * 8, 17, 396, 64, kPieceTiles).splits == 16);  // razor's pool
}

}  // namespace
}  // namespace headwater
