#include "server/cli/chat.h"

#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "engine/config/config_check.h"
#include "engine/log.h"
#include "server/cli/chat_backend.h"
#include "server/cli/load_progress.h"
#include "server/config/option_table.h"

namespace headwater::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ChatConfig {
  std::string url = "http://127.0.0.1:8000";
  std::string url_model;
  std::string api_key;
  std::string system;
  ChatSampling sampling;
  EngineConfig engine;
};

void describe_chat(ChatConfig& c, OptionTable& visit) {
  visit("url", c.url, "server to talk to, unless --model loads one here");
  visit("url-model", c.url_model, "model name at the server; default: the first one it lists");
  visit("api-key", c.api_key, "the server's key");
  visit("system", c.system, "system message");
  visit("temperature", c.sampling.temperature, "0 = greedy");
  visit("top-p", c.sampling.top_p, "nucleus of the distribution to draw from");
  visit("max-tokens", c.sampling.max_tokens, "longest answer; 0 = what the context leaves");
  visit("sampling-seed", c.sampling.seed, "same seed, same answers; 0 = random");
  describe_engine(c.engine, visit);
}

constexpr const char* kCommands =
    "/system TEXT sets the system message, /reset forgets the conversation, /quit leaves; Ctrl-C "
    "ends an answer.";

class Conversation {
 public:
  Conversation(ChatBackend& backend, const ChatConfig& config)
      : backend_(backend), sampling_(config.sampling), system_(config.system) {
    reset();
  }

  // False: the user leaves.
  bool take(const std::string& line) {
    if (line == "/quit" || line == "/exit") return false;
    if (line == "/reset") {
      reset();
    } else if (line == "/help") {
      std::cerr << kCommands << "\n";
    } else if (line == "/system" || line.starts_with("/system ")) {
      system_ = line.size() > 8 ? line.substr(8) : "";
      reset();
    } else if (line.starts_with('/')) {
      std::cerr << "unknown command " << line << "; " << kCommands << "\n";
    } else if (!line.empty()) {
      ask(line);
    }
    return true;
  }

  bool failed() const { return failed_; }

 private:
  void reset() {
    messages_ = Json::array();
    if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
  }

  void ask(const std::string& line) {
    messages_.push_back({{"role", "user"}, {"content", line}});
    Answer answer;
    try {
      answer = backend_.answer(
          messages_, sampling_, [](const std::string& piece) { std::cout << piece << std::flush; });
    } catch (const std::runtime_error& e) {
      std::cerr << "\nerror: " << e.what() << "\n";
      messages_.erase(messages_.size() - 1);
      failed_ = true;
      return;
    }
    std::cout << "\n" << std::flush;
    const double decode_s = answer.total_s - answer.first_s;
    const double rate =
        answer.tokens > 1 && decode_s > 0 ? static_cast<double>(answer.tokens - 1) / decode_s : 0;
    std::fprintf(stderr,
                 "[%lld tokens, %.1f tokens/s, first after %.2f s%s]\n",
                 static_cast<long long>(answer.tokens),
                 rate,
                 answer.first_s,
                 answer.cancelled ? ", cancelled" : "");
    messages_.push_back({{"role", "assistant"}, {"content", answer.text}});
  }

  ChatBackend& backend_;  // not owned
  const ChatSampling sampling_;
  std::string system_;
  Json messages_;
  bool failed_ = false;
};

std::unique_ptr<ChatBackend> make_backend(const ChatConfig& config) {
  if (config.engine.model.empty()) {
    return make_http_backend(config.url, config.api_key, config.url_model);
  }
  std::string all;
  for (const std::string& issue : check_engine_config(config.engine)) {
    all += (all.empty() ? "" : "\n") + issue;
  }
  if (!all.empty()) throw ConfigError(all);
  log::set_level("warn");
  return make_engine_backend(make_engine(config.engine, make_load_progress()));
}

}  // namespace

std::string chat_help() {
  ChatConfig config;
  OptionTable table;
  describe_chat(config, table);
  return "Talk to a model in the terminal.\n"
         "\n"
         "Usage: headwater chat [options]                 with a running server\n"
         "       headwater chat --model PATH [options]    with a model in this process\n"
         "\n"
         "Examples\n"
         "  headwater chat\n"
         "      with the server on this machine\n"
         "  headwater chat --model model.gguf --system 'Answer in one sentence.'\n"
         "  echo 'Write one sentence about the sea.' | headwater chat --temperature 0\n"
         "      one question a line; answers on standard output, figures on standard error\n"
         "\n" +
         std::string(kCommands) + "\n" +
         format_options(
             table,
             {{"Server", {"url", "url-model", "api-key"}},
              {"Conversation", {"system", "temperature", "top-p", "max-tokens", "sampling-seed"}},
              {"Model in this process (further options as in `headwater serve --help`)",
               {"model", "device", "threads", "max-model-len", "chat-template"}}});
}

int run_chat(const std::vector<std::string>& args) {
  ChatConfig config;
  OptionTable table;
  describe_chat(config, table);
  if (const auto words = apply_flags(table, args); !words.empty()) {
    throw ConfigError("chat takes flags only, got \"" + words[0] + "\"; a model is --model PATH");
  }
  const std::unique_ptr<ChatBackend> backend = make_backend(config);
  Conversation conversation(*backend, config);
  const bool is_tty = isatty(STDIN_FILENO) == 1;
  if (is_tty) std::cerr << "Talking to " << backend->description() << ". " << kCommands << "\n";
  for (std::string line;;) {
    if (is_tty) std::cerr << "> " << std::flush;
    if (!std::getline(std::cin, line) || !conversation.take(line)) break;
  }
  return conversation.failed() ? 1 : 0;
}

}  // namespace headwater::cli
