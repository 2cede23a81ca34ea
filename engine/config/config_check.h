// Bounds of EngineConfig alone; what needs the model or the device is checked while loading.
#pragma once

#include <string>
#include <vector>

#include "engine/config/engine_config.h"

namespace headwater {

// Every issue found, each naming the option, the value and what is allowed. Empty: all good.
// The existence of files is not checked here.
std::vector<std::string> check_engine_config(const EngineConfig& config);

}  // namespace headwater
