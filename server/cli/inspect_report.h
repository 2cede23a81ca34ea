// What a model's files hold and what would be refused, as JSON: the facts behind `inspect`.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/config/engine_config.h"

namespace headwater::cli {

struct InspectReport {
  nlohmann::ordered_json fields;     // only what could be read
  std::vector<std::string> refused;  // every reason found why a server would not start; empty: none
  std::vector<std::string> warnings;  // what works differently from what one may expect
};

// Never throws because of the files. attention: also what its policy and head table make of the KV
// cache; null = not asked.
InspectReport make_inspect_report(const std::string& path, const EngineConfig* attention);

}  // namespace headwater::cli
