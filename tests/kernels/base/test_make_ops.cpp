#include <catch2/catch.hpp>

#include "kernels/base/status.h"
#include "kernels/make_ops.h"

namespace headwater {

using Catch::Matchers::Contains;

TEST_CASE("make_ops: auto is a usable GPU or the CPU; cuda says what is in the way") {
  ThreadPool pool(1);
  CHECK(make_ops("ref", pool)->name() == "ref");
  CHECK(make_ops("cpu", pool)->name() == "cpu");
  CHECK_THROWS_WITH(make_ops("abacus", pool), Contains("auto, cuda, cpu or ref, got \"abacus\""));
  const std::string obstacle = cuda_obstacle();
  INFO(obstacle);
  CHECK(make_ops("auto", pool)->name() == (obstacle.empty() ? "cuda" : "cpu"));
  if (obstacle.empty()) return;
  CHECK_THAT(obstacle,
             Contains("no usable GPU: ") || Contains("built without CUDA") ||
                 Contains("this build has no code for it"));
  CHECK_THROWS_AS(make_ops("cuda", pool), ConfigError);
  CHECK_THROWS_WITH(make_ops("cuda", pool), "device cuda: " + obstacle);
}

}  // namespace headwater
