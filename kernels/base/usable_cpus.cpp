#include "kernels/base/usable_cpus.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

namespace headwater {
namespace {

const std::string kCgroupRoot = "/sys/fs/cgroup";

std::optional<double> ratio(const std::string& quota_us, const std::string& period_us) {
  std::istringstream quota_text(quota_us), period_text(period_us);
  double quota = 0, period = 0;
  if (!(quota_text >> quota) || !(period_text >> period)) return std::nullopt;  // "max", garbage
  if (quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

std::optional<double> limit_v2(const ReadFile& read, const std::string& folder) {
  std::istringstream text(read(folder + "/cpu.max").value_or(""));
  std::string quota, period;
  text >> quota >> period;
  return ratio(quota, period);
}

std::optional<double> limit_v1(const ReadFile& read, const std::string& folder) {
  return ratio(read(folder + "/cpu.cfs_quota_us").value_or(""),
               read(folder + "/cpu.cfs_period_us").value_or(""));
}

bool lists(const std::string& controllers, const std::string& name) {
  return ("," + controllers + ",").find("," + name + ",") != std::string::npos;
}

std::optional<std::string> read_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

int affinity_cpus() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return CPU_COUNT(&cpus);
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

// A line of /proc/self/cgroup is "hierarchy:controllers:path"; version 2's is "0::path". Inside a
// container the path may be the host's and not exist; then the mount's root is the container's
// cgroup, which the walk upwards ends at.
std::optional<double> cgroup_cpu_limit(const ReadFile& read) {
  std::optional<double> tightest;
  std::istringstream lines(read("/proc/self/cgroup").value_or(""));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_v2 = controllers.empty();
    if (!is_v2 && !lists(controllers, "cpu")) continue;
    const std::string mount = is_v2 ? kCgroupRoot : kCgroupRoot + "/" + controllers;
    std::string path = line.substr(second + 1);
    while (true) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      const std::string folder = mount + path;
      const auto limit = is_v2 ? limit_v2(read, folder) : limit_v1(read, folder);
      if (limit) tightest = std::min(*limit, tightest.value_or(*limit));
      if (path.empty()) break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return tightest;
}

int usable_cpus(int affinity_cpus, std::optional<double> cgroup_limit) {
  double cpus = affinity_cpus;
  if (cgroup_limit) cpus = std::min(cpus, std::ceil(*cgroup_limit));
  return std::max(1, static_cast<int>(cpus));
}

int usable_cpus() { return usable_cpus(affinity_cpus(), cgroup_cpu_limit(read_file)); }

}  // namespace headwater
