// Bounds of EngineConfig alone. What needs the model or the device is checked while loading; so are
// the policy and what it takes, because engine/attention/policy_table.h is the one list of
// policies.
#pragma once

#include <string>
#include <vector>

#include "engine/config/engine_config.h"

namespace headwater {

// Every issue found, each naming the option, the value and what is allowed. Empty: all good.
// The existence of files is not checked here.
std::vector<std::string> check_engine_config(const EngineConfig& config);

}  // namespace headwater
