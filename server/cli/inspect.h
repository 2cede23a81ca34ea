// inspect: `headwater inspect MODEL`, what a model's files hold and whether they can be served.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "engine/config/engine_config.h"

namespace headwater::cli {

// Writes metadata, tensors, sizes, KV bytes per token, tokenizer, chat template and every reason
// for a refusal, as text or as one JSON object. Returns 0 if the model can be served, else 1.
// attention: also what its policy and head table make of the KV cache; null = not asked.
int inspect(const std::string& path,
            bool json,
            std::ostream& out,
            const EngineConfig* attention = nullptr);

// The command. Returns the exit code. Throws ConfigError.
int run_inspect(const std::vector<std::string>& args);

std::string inspect_help();

}  // namespace headwater::cli
