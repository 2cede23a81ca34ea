// Against values computed once from the published formulas by a separate script.
#include <catch2/catch.hpp>
#include <cmath>
#include <utility>
#include <vector>

#include "engine/model/rope_scaling.h"

namespace headwater {
namespace {

using Points = std::vector<std::pair<size_t, double>>;  // pair, frequency

void check_points(const RopeSpec& rope, const Points& points) {
  for (const auto& [pair, frequency] : points) {
    INFO("pair " << pair);
    CHECK(rope.inv_freq.at(pair) == Approx(frequency).epsilon(1e-12));
  }
}

TEST_CASE("rope_scaling: unscaled and linear", "[engine][unit]") {
  const RopeSpec plain = make_rope(RopePairing::kHalves, 64, 10000.0, {});
  REQUIRE(plain.inv_freq.size() == 32);
  CHECK(plain.rotary_dim == 64);
  CHECK(plain.magnitude == 1.0f);
  CHECK(plain.inv_freq[0] == 1.0);
  CHECK(plain.inv_freq[16] == Approx(0.01).epsilon(1e-12));

  RopeScaling linear;
  linear.rule = RopeRule::kLinear;
  linear.factor = 8;
  const RopeSpec scaled = make_rope(RopePairing::kAdjacent, 64, 10000.0, linear);
  CHECK(scaled.pairing == RopePairing::kAdjacent);
  for (size_t i = 0; i < 32; ++i) {
    CHECK(scaled.inv_freq[i] == Approx(plain.inv_freq[i] / 8).epsilon(1e-12));
  }
}

TEST_CASE("rope_scaling: divisors divide the frequencies", "[engine][unit]") {
  const std::vector<float> divisors = {1.0f, 2.0f, 4.0f, 8.0f};
  const RopeSpec plain = make_rope(RopePairing::kAdjacent, 8, 10000.0, {});
  const RopeSpec divided = make_rope(RopePairing::kAdjacent, 8, 10000.0, {}, divisors);
  for (size_t i = 0; i < 4; ++i) CHECK(divided.inv_freq[i] == plain.inv_freq[i] / divisors[i]);
}

TEST_CASE("rope_scaling: llama3 with the numbers of Llama 3.2", "[engine][unit]") {
  RopeScaling scaling;
  scaling.rule = RopeRule::kLlama3;
  scaling.factor = 32;
  scaling.low_freq_factor = 1;
  scaling.high_freq_factor = 4;
  scaling.original_positions = 8192;
  const RopeSpec rope = make_rope(RopePairing::kHalves, 64, 500000.0, scaling);
  check_points(rope,
               {{0, 1.0},
                {1, 0.6636012376960885},
                {14, 0.0032114459947525913},
                {15, 0.001290547928209264},
                {16, 0.00042955679655936815},
                {17, 9.70828780262767e-05},
                {18, 1.9461638184831125e-05},
                {31, 9.418306725434909e-08}});
  CHECK(rope.magnitude == 1.0f);
}

TEST_CASE("rope_scaling: yarn", "[engine][unit]") {
  RopeScaling scaling;
  scaling.rule = RopeRule::kYarn;
  scaling.factor = 4;
  scaling.original_positions = 4096;
  scaling.magnitude = yarn_magnitude(4);
  const RopeSpec rope = make_rope(RopePairing::kHalves, 128, 10000.0, scaling);
  check_points(rope,
               {{0, 1.0},
                {20, 0.056234132519034905},
                {21, 0.047292038501684786},
                {32, 0.006538461538461538},
                {45, 0.0004294025889973582},
                {46, 0.000333380358040831},
                {63, 2.8869549617236455e-05}});
  CHECK(rope.magnitude == Approx(1.138629436111989));
  CHECK(yarn_magnitude(1) == 1.0);

  scaling.extrapolation = 0;  // every pair divided
  const RopeSpec plain = make_rope(RopePairing::kHalves, 128, 10000.0, {});
  const RopeSpec divided = make_rope(RopePairing::kHalves, 128, 10000.0, scaling);
  for (size_t i = 0; i < 64; ++i) {
    CHECK(divided.inv_freq[i] == Approx(plain.inv_freq[i] / 4).epsilon(1e-12));
  }
}

}  // namespace
}  // namespace headwater
