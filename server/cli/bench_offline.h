// bench_offline: `headwater bench --offline`, the speed of a model's shape on this machine's
// device.
#pragma once

#include <string>
#include <vector>

namespace headwater::cli {

bool asks_offline(const std::vector<std::string>& args);  // has --offline
// Returns the exit code. Throws ConfigError.
int run_bench_offline(const std::vector<std::string>& args);

std::string bench_offline_help();

}  // namespace headwater::cli
