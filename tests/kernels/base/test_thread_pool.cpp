#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <ctime>
#include <thread>
#include <vector>

#include "kernels/base/thread_pool.h"

namespace headwater {
namespace {

TEST_CASE("parallel_for runs every task once, on threads of the pool") {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    REQUIRE(pool.num_threads() == threads);
    for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
      for (int round = 0; round < 50; ++round) {
        std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
        std::atomic<bool> in_range{true};
        pool.parallel_for(tasks, [&](int64_t task, int thread) {
          ++runs[static_cast<size_t>(task)];
          if (thread < 0 || thread >= threads) in_range = false;
        });
        for (const std::atomic<int>& count : runs) REQUIRE(count == 1);
        REQUIRE(in_range);
      }
    }
  }
}

TEST_CASE("what tasks wrote is visible to the caller and to the next job") {
  ThreadPool pool(3);
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 20000; ++round) {
    pool.parallel_for(64, [&](int64_t task, int) { values[static_cast<size_t>(task)] += task; });
  }
  for (int64_t i = 0; i < 64; ++i) REQUIRE(values[static_cast<size_t>(i)] == 20000 * i);
}

TEST_CASE("sleeping workers use no processor and wake again") {
  ThreadPool pool(3);
  std::atomic<int> runs{0};
  pool.parallel_for(8, [&](int64_t, int) { ++runs; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const double busy = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  CHECK(busy < 0.003);
  pool.parallel_for(8, [&](int64_t, int) { ++runs; });
  CHECK(runs == 16);
}

}  // namespace
}  // namespace headwater
