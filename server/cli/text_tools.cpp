#include "server/cli/text_tools.h"

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/model/text_files.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"
#include "server/config/option_table.h"

namespace headwater::cli {
namespace {

using Json = nlohmann::ordered_json;

struct TokenizeConfig {
  bool json = false;
  bool add_special = false;
  bool parse_special = false;
};

void describe(TokenizeConfig& config, OptionTable& visit) {
  visit("json", config.json, "read a JSON list of requests, write a JSON list of id lists");
  visit("add-special", config.add_special, "plain text: add bos and eos as the model says");
  visit("parse-special",
        config.parse_special,
        "plain text: <|im_start|> and the like become control tokens");
}

struct RenderConfig {
  bool json = false;
  std::string template_path;
  int64_t now = -1;
};

void describe(RenderConfig& config, OptionTable& visit) {
  visit("template", config.template_path, "a Jinja file instead of a model's own template");
  visit("json", config.json, "the input is JSON, as it always is; for scripts that say so");
  visit("now", config.now, "seconds since 1970 for strftime_now; -1 = the clock");
}

std::string read_all(std::istream& in) { return {std::istreambuf_iterator<char>(in), {}}; }

Json parse_input(const std::string& text) {
  constexpr int kMaxDepth = 128;
  const auto bounded = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth) throw LoadError("standard input: JSON nested deeper than 128 levels");
    return true;
  };
  try {
    return Json::parse(text, bounded);
  } catch (const Json::exception& error) {
    throw LoadError("standard input: no JSON: " + std::string(error.what()));
  }
}

std::vector<int32_t> encode_request(const Tokenizer& tokenizer, const Json& request, size_t index) {
  const auto fail = [&](const std::string& expected) {
    return LoadError("standard input: request " + std::to_string(index) + ": expected " + expected +
                     ", e.g. {\"text\": \"Hi\", \"add_special\": true, \"parse_special\": false}");
  };
  if (!request.is_object() || !request.contains("text") || !request["text"].is_string()) {
    throw fail("an object with \"text\", a string");
  }
  const auto flag = [&](const char* name) {
    if (!request.contains(name)) return false;
    if (!request[name].is_boolean()) throw fail(std::string("true or false for \"") + name + "\"");
    return request[name].get<bool>();
  };
  return tokenizer.encode(
      request["text"].get_ref<const std::string&>(), flag("add_special"), flag("parse_special"));
}

std::string one_model(const std::vector<std::string>& words, const std::string& usage) {
  if (words.size() != 1) {
    throw ConfigError("got " + std::to_string(words.size()) + " words; expected: " + usage);
  }
  return words[0];
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw LoadError(path + ": cannot be read; expected a Jinja file");
  return read_all(file);
}

}  // namespace

int tokenize(const std::vector<std::string>& args, std::istream& in, std::ostream& out) {
  TokenizeConfig config;
  OptionTable table;
  describe(config, table);
  const std::string path =
      one_model(apply_flags(table, args), "headwater tokenize MODEL [--json] < INPUT");
  const auto tokenizer = make_tokenizer(read_vocabulary(path));
  const std::string input = read_all(in);
  if (!config.json) {
    for (const int32_t id : tokenizer->encode(input, config.add_special, config.parse_special)) {
      out << id << "\t"
          << Json(tokenizer->token_text(id)).dump(-1, ' ', false, Json::error_handler_t::replace)
          << "\n";
    }
    return 0;
  }
  const Json requests = parse_input(input);
  if (!requests.is_array()) throw LoadError("standard input: expected a JSON list of requests");
  Json replies = Json::array();
  for (size_t i = 0; i < requests.size(); ++i) {
    replies.push_back(encode_request(*tokenizer, requests[i], i));
  }
  out << replies.dump() << "\n";
  return 0;
}

int render(const std::vector<std::string>& args, std::istream& in, std::ostream& out) {
  RenderConfig config;
  OptionTable table;
  describe(config, table);
  const std::vector<std::string> words = apply_flags(table, args);
  const std::string usage = "headwater render (MODEL | --template FILE) [--json] < INPUT";
  if (config.template_path.empty() == words.empty()) {
    throw ConfigError("give a model or --template, one of them; expected: " + usage);
  }
  std::string source, name = config.template_path;
  std::optional<Vocabulary> vocabulary;
  if (words.empty()) {
    source = read_file(config.template_path);
  } else {
    name = one_model(words, usage);
    source = read_chat_template(name);
    if (source.empty()) {
      throw LoadError(
          name + ": has no chat template, so it completes text only; give one with --template");
    }
  }
  const ChatTemplate chat_template(std::move(source), name);
  if (!words.empty()) vocabulary = read_vocabulary(name);
  Json variables = parse_input(read_all(in));
  if (!variables.is_object()) {
    throw LoadError("standard input: expected a JSON object with \"messages\"");
  }
  const auto add_token = [&](const char* key, int32_t id) {
    if (id >= 0 && !variables.contains(key)) variables[key] = vocabulary->tokens[id];
  };
  if (vocabulary) {
    add_token("bos_token", vocabulary->bos);
    add_token("eos_token", vocabulary->eos);
    add_token("unk_token", vocabulary->unknown);
    add_token("pad_token", vocabulary->pad);
  }
  const auto now = config.now < 0 ? std::nullopt : std::optional(config.now);
  const Result<std::string> text = chat_template.render(variables, now);
  if (!text.ok()) throw LoadError(name + ": " + text.status().message);
  out << text.value();
  return 0;
}

int run_tokenize(const std::vector<std::string>& args) {
  return tokenize(args, std::cin, std::cout);
}
int run_render(const std::vector<std::string>& args) { return render(args, std::cin, std::cout); }

std::string tokenize_help() {
  TokenizeConfig config;
  OptionTable table;
  describe(config, table);
  return "Turn text into a model's token ids.\n"
         "\n"
         "Usage: headwater tokenize MODEL [options] < INPUT\n"
         "\n"
         "MODEL is a .gguf file (one with a vocabulary only will do), a tokenizer.json, or a "
         "model\n"
         "folder. The weights are not read.\n"
         "\n"
         "Plain input is one text; each id is printed on a line with its token. With --json the\n"
         "input is a list of {\"text\", \"add_special\", \"parse_special\"} and the output a list "
         "of id\n"
         "lists; the two flags default to false.\n"
         "\n"
         "Examples\n"
         "  echo -n 'Hello world' | headwater tokenize model.gguf\n"
         "  echo '[{\"text\": \"Hi<|im_end|>\", \"parse_special\": true}]' |\n"
         "      headwater tokenize tokenizer.json --json\n"
         "\n" +
         format_options(
             table, {{"Input and output", {"json"}}, {"Tokens", {"add-special", "parse-special"}}});
}

std::string render_help() {
  RenderConfig config;
  OptionTable table;
  describe(config, table);
  return "Render a conversation with a model's chat template: the text that the model would see.\n"
         "\n"
         "Usage: headwater render (MODEL | --template FILE) [options] < INPUT\n"
         "\n"
         "INPUT is a JSON object of the template's variables: \"messages\", and \"tools\",\n"
         "\"add_generation_prompt\" or any other that the template knows. A model adds its own\n"
         "\"bos_token\", \"eos_token\", \"unk_token\" and \"pad_token\" where INPUT has none. The "
         "text\n"
         "and nothing else goes to standard output; where the template fails, the reason goes to\n"
         "standard error and the exit status is 1.\n"
         "\n"
         "Examples\n"
         "  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], "
         "\"add_generation_prompt\": true}' |\n"
         "      headwater render model.gguf\n"
         "  headwater render --template chat.jinja < conversation.json\n"
         "\n" +
         format_options(table, {{"Template", {"template", "now"}}, {"Input", {"json"}}});
}

}  // namespace headwater::cli
