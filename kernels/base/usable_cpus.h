// How many CPUs this process may really use. Any thread.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace headwater {

// The text of a file; nullopt: there is none.
using ReadFile = std::function<std::optional<std::string>(const std::string& path)>;

// The tightest CPU limit, in CPUs, of the process's cgroup and those above it; nullopt: none.
// Reads /proc/self/cgroup, then below /sys/fs/cgroup: version 2's cpu.max ("150000 100000" is 1.5
// CPUs, "max 100000" none), version 1's cpu.cfs_quota_us and cpu.cfs_period_us (quota -1: none).
// Source: Linux, Documentation/admin-guide/cgroup-v2.rst ("CPU Interface Files") and
// Documentation/scheduler/sched-bwc.rst.
std::optional<double> cgroup_cpu_limit(const ReadFile& read);

// The CPUs of the scheduler's affinity mask, bounded by cgroup_cpu_limit; at least 1. A fraction
// counts as a whole CPU: the threads then wait for part of each period, and none of it is wasted.
int usable_cpus(int affinity_cpus, std::optional<double> cgroup_limit);
// Of this process, now.
int usable_cpus();

}  // namespace headwater
