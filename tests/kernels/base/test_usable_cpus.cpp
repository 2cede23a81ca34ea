#include <sched.h>

#include <catch2/catch.hpp>
#include <map>
#include <thread>

#include "kernels/base/thread_pool.h"
#include "kernels/base/usable_cpus.h"

namespace headwater {
namespace {

std::optional<double> limit_of(const std::map<std::string, std::string>& files) {
  return cgroup_cpu_limit([&](const std::string& path) -> std::optional<std::string> {
    const auto file = files.find(path);
    if (file == files.end()) return std::nullopt;
    return file->second;
  });
}

TEST_CASE("usable_cpus: version 2's cpu.max, the tightest of the path upwards") {
  const std::string own = "0::/system.slice/headwater.service\n";
  const std::string slice = "/sys/fs/cgroup/system.slice";
  CHECK(limit_of({{"/proc/self/cgroup", own},
                  {slice + "/headwater.service/cpu.max", "150000 100000\n"}}) == 1.5);
  CHECK(limit_of({{"/proc/self/cgroup", own},
                  {slice + "/headwater.service/cpu.max", "max 100000\n"},
                  {slice + "/cpu.max", "400000 100000\n"}}) == 4.0);
  CHECK(limit_of({{"/proc/self/cgroup", own},
                  {slice + "/headwater.service/cpu.max", "400000 100000\n"},
                  {slice + "/cpu.max", "100000 50000\n"},
                  {"/sys/fs/cgroup/cpu.max", "800000 100000\n"}}) == 2.0);
  CHECK_FALSE(limit_of(
      {{"/proc/self/cgroup", own}, {slice + "/headwater.service/cpu.max", "max 100000\n"}}));
}

TEST_CASE("usable_cpus: a container that sees the host's path is bounded by its own root") {
  CHECK(limit_of({{"/proc/self/cgroup", "0::/docker/0123abcd\n"},
                  {"/sys/fs/cgroup/cpu.max", "200000 100000\n"}}) == 2.0);
  CHECK(limit_of({{"/proc/self/cgroup", "0::/\n"}, {"/sys/fs/cgroup/cpu.max", "50000 100000\n"}}) ==
        0.5);
}

TEST_CASE("usable_cpus: version 1's quota over period, of the hierarchy with the cpu controller") {
  const std::string own =
      "11:cpuset:/docker/0123\n4:cpu,cpuacct:/docker/0123\n1:name=systemd:/docker/0123\n0::/\n";
  const std::string folder = "/sys/fs/cgroup/cpu,cpuacct/docker/0123";
  CHECK(limit_of({{"/proc/self/cgroup", own},
                  {folder + "/cpu.cfs_quota_us", "300000\n"},
                  {folder + "/cpu.cfs_period_us", "100000\n"}}) == 3.0);
  CHECK(limit_of({{"/proc/self/cgroup", own},
                  {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "25000\n"},
                  {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "50000\n"}}) == 0.5);
  CHECK_FALSE(limit_of({{"/proc/self/cgroup", own},
                        {folder + "/cpu.cfs_quota_us", "-1\n"},
                        {folder + "/cpu.cfs_period_us", "100000\n"}}));
}

TEST_CASE("usable_cpus: what is absent or makes no sense is no limit") {
  CHECK_FALSE(limit_of({}));
  for (const char* text : {"", "\n", "max", "x 100000", "100000", "100000 0", "0 100000", "-1 -1"})
    CHECK_FALSE(limit_of({{"/proc/self/cgroup", "0::/\n"}, {"/sys/fs/cgroup/cpu.max", text}}));
  for (const char* line : {"", ":", "0:", "nonsense\n", "0::\n"})
    CHECK_FALSE(limit_of({{"/proc/self/cgroup", line}}));
}

TEST_CASE("usable_cpus: the smaller of affinity and limit, a fraction rounded up, at least one") {
  CHECK(usable_cpus(8, std::nullopt) == 8);
  CHECK(usable_cpus(8, 2.0) == 2);
  CHECK(usable_cpus(8, 1.5) == 2);
  CHECK(usable_cpus(8, 0.1) == 1);
  CHECK(usable_cpus(2, 6.0) == 2);
  CHECK(usable_cpus(0, std::nullopt) == 1);
  CHECK(usable_cpus(4, 1e300) == 4);
}

TEST_CASE("usable_cpus: ThreadPool(0) follows the affinity of its caller") {
  CHECK(ThreadPool(0).num_threads() == usable_cpus());
  int threads = 0;
  std::thread([&] {  // of its own, so that the mask of the other tests stays
    cpu_set_t cpus;
    REQUIRE(sched_getaffinity(0, sizeof(cpus), &cpus) == 0);
    int first = 0;
    while (!CPU_ISSET(first, &cpus)) ++first;
    CPU_ZERO(&cpus);
    CPU_SET(first, &cpus);
    REQUIRE(sched_setaffinity(0, sizeof(cpus), &cpus) == 0);
    threads = ThreadPool(0).num_threads();
  })
      .join();
  CHECK(threads == 1);
}

}  // namespace
}  // namespace headwater
