// calibrate: `headwater calibrate MODEL --method M --output FILE`, from a model to a head table.
#pragma once

#include <string>
#include <vector>

namespace headwater::cli {

// The command. Returns the exit code. Throws ConfigError, LoadError.
int run_calibrate(const std::vector<std::string>& args);

std::string calibrate_help();

}  // namespace headwater::cli
