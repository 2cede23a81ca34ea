// serve: `headwater serve`: configuration -> listeners -> engine -> wait -> drain.
#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/config/config.h"

namespace headwater::cli {

using EngineMaker =
    std::function<std::unique_ptr<Engine>(const EngineConfig&, const LoadProgress&)>;

// Runs until SIGTERM or SIGINT and a drain (returns 0) or until the engine fails (returns 1). The
// listeners are open while the model loads, so that probes get their answer. Throws ConfigError,
// LoadError, CudaError.
int run_serve(const std::vector<std::string>& args, const std::vector<EnvVar>& env);
int serve(const LoadedConfig& loaded, const EngineMaker& make_engine);

}  // namespace headwater::cli
