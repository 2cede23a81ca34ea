// bench: `headwater bench`, a load client for any server with OpenAI's API.
#pragma once

#include <string>
#include <vector>

namespace headwater::cli {

// Returns the exit code: 0 if every request succeeded, 1 otherwise. Throws ConfigError.
int run_bench(const std::vector<std::string>& args);

std::string bench_help();

}  // namespace headwater::cli
