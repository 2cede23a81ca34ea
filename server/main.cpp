// headwater: the commands and their exit codes: 0 all well (serve: after a drain), 1 the model,
// device or server failed, 2 the command line or configuration is wrong.
#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "server/cli/bench.h"
#include "server/cli/bench_offline.h"
#include "server/cli/calibrate.h"
#include "server/cli/chat.h"
#include "server/cli/inspect.h"
#include "server/cli/serve.h"
#include "server/cli/text_tools.h"
#include "server/config/option_table.h"

namespace headwater {
namespace {

constexpr int kUsageExit = 2;

using Words = std::vector<std::string>;

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Words& args, const std::vector<EnvVar>& env);
  std::string (*help)();
};

constexpr Command kCommands[] = {
    {"serve", "serve one model over HTTP (OpenAI's API) and gRPC", cli::run_serve, serve_help},
    {"chat",
     "talk to a server or a model in the terminal",
     [](const Words& args, const std::vector<EnvVar>&) { return cli::run_chat(args); },
     cli::chat_help},
    {"bench",
     "load a server, or run a model's shape here, and measure latency and throughput",
     [](const Words& args, const std::vector<EnvVar>&) {
       return cli::asks_offline(args) ? cli::run_bench_offline(args) : cli::run_bench(args);
     },
     [] { return cli::bench_help() + cli::bench_offline_help(); }},
    {"calibrate",
     "find the heads that need the whole context: write a head table",
     [](const Words& args, const std::vector<EnvVar>&) { return cli::run_calibrate(args); },
     cli::calibrate_help},
    {"inspect",
     "show what a model file holds",
     [](const Words& args, const std::vector<EnvVar>&) { return cli::run_inspect(args); },
     cli::inspect_help},
    {"tokenize",
     "turn text into a model's token ids",
     [](const Words& args, const std::vector<EnvVar>&) { return cli::run_tokenize(args); },
     cli::tokenize_help},
    {"render",
     "render a conversation with a chat template",
     [](const Words& args, const std::vector<EnvVar>&) { return cli::run_render(args); },
     cli::render_help},
};

std::string overview() {
  std::string text = "Headwater " HEADWATER_VERSION
                     ", an inference server for language models.\n\n"
                     "Usage: headwater COMMAND [options]\n\n";
  for (const Command& command : kCommands) {
    const std::string name = command.name;
    text += "  " + name + std::string(11 - name.size(), ' ') + command.summary + "\n";
  }
  return text + "\n`headwater COMMAND --help` explains a command with examples.\n";
}

std::vector<EnvVar> read_environment(char** environment) {
  std::vector<EnvVar> variables;
  for (char** entry = environment; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) {
      variables.push_back({text.substr(0, equals), text.substr(equals + 1)});
    }
  }
  return variables;
}

int run_command(const Command& command, const Words& args, const std::vector<EnvVar>& env) {
  if (wants_help(args)) {
    std::cout << command.help();
    return 0;
  }
  try {
    return command.run(args, env);
  } catch (const ConfigError& e) {
    std::cerr << "headwater " << command.name << ": error: " << e.what() << "\n`headwater "
              << command.name << " --help` lists the options.\n";
    return kUsageExit;
  } catch (const std::exception& e) {
    std::cerr << "headwater " << command.name << ": error: " << e.what() << "\n";
    return 1;
  }
}

int run(const Words& words, const std::vector<EnvVar>& env) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    (words.empty() ? std::cerr : std::cout) << overview();
    return words.empty() ? kUsageExit : 0;
  }
  if (words[0] == "--version") {
    std::cout << "headwater " HEADWATER_VERSION "\n";
    return 0;
  }
  for (const Command& command : kCommands) {
    if (words[0] == command.name) {
      return run_command(command, Words(words.begin() + 1, words.end()), env);
    }
  }
  std::cerr << "headwater: unknown command \"" << words[0] << "\"\n\n" << overview();
  return kUsageExit;
}

}  // namespace
}  // namespace headwater

int main(int argc, char** argv) {
  return headwater::run({argv + 1, argv + argc}, headwater::read_environment(environ));
}
