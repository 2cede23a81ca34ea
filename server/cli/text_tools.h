// tokenize, render: a model's tokenizer and chat template for scripts, without its weights.
#pragma once

#include <istream>
#include <ostream>
#include <string>
#include <vector>

namespace headwater::cli {

// `headwater tokenize MODEL [--json]` and `headwater render (MODEL | --template FILE) [--json]`:
// read `in`, write `out`. Return the exit code. Throw ConfigError: the command line; LoadError: the
// model's files, or input that is not what the command takes.
int tokenize(const std::vector<std::string>& args, std::istream& in, std::ostream& out);
int render(const std::vector<std::string>& args, std::istream& in, std::ostream& out);

// The commands, on the standard streams.
int run_tokenize(const std::vector<std::string>& args);
int run_render(const std::vector<std::string>& args);

std::string tokenize_help();
std::string render_help();

}  // namespace headwater::cli
