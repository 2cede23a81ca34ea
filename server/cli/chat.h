// chat: `headwater chat`, a terminal conversation with a server (--url) or with a model loaded into
// this process (--model). Works with plain standard input too.
#pragma once

#include <string>
#include <vector>

namespace headwater::cli {

// Returns the exit code. Throws ConfigError, LoadError, std::runtime_error.
int run_chat(const std::vector<std::string>& args);

std::string chat_help();

}  // namespace headwater::cli
