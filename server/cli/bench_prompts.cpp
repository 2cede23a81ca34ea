#include "server/cli/bench_prompts.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_future.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <stdexcept>

#include "kernels/base/status.h"

namespace headwater::cli {
namespace {

namespace asio = boost::asio;
using Json = nlohmann::ordered_json;

Json request_body(const BenchConfig& c,
                  const std::string& model,
                  const Json& prompt,
                  int64_t length) {
  Json body = {{"model", model}};
  if (c.endpoint == "chat") {
    body["messages"] =
        prompt.is_array() ? prompt : Json::array({{{"role", "user"}, {"content", prompt}}});
    body["max_completion_tokens"] = length;
  } else {
    body["prompt"] = prompt;
    body["max_tokens"] = length;
  }
  body["temperature"] = c.temperature;
  body["repetition_penalty"] = 1.0;
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  if (c.ignore_eos) body["ignore_eos"] = true;
  return body;
}

}  // namespace

// The vocabulary itself is not visible over HTTP, and ids drawn blindly could be control tokens.
std::vector<int32_t> ordinary_ids(Caller& caller, const std::string& model) {
  constexpr const char* kText =
      "The river rises in the hills, runs past seven villages and an old mill, and meets the sea "
      "under a long bridge. Every spring the water is high and brown; boats wait, children count "
      "trees that drift by, and someone always says that this year is worse than the last. In "
      "summer it is so low that one can cross on stones, 40 of them, without a wet foot. Engineers "
      "measure depth, speed and temperature at noon: 3.2 metres, 0.8 metres per second, 14 "
      "degrees. "
      "Nobody remembers who planted the poplars. They give shade to the road, the market, the "
      "school; their leaves turn yellow first. What is written here means nothing in particular, "
      "yet it uses common words, some numbers (1, 25, 360) and signs such as : ; ? ! and more.";
  const Json reply = caller.call_json(
      "/tokenize", Json{{"model", model}, {"prompt", kText}, {"add_special_tokens", false}}.dump());
  std::set<int32_t> ids;
  if (const auto tokens = reply.find("tokens"); tokens != reply.end() && tokens->is_array()) {
    for (const Json& id : *tokens) {
      if (id.is_number_integer()) ids.insert(id.get<int32_t>());
    }
  }
  if (ids.empty()) throw std::runtime_error("/tokenize gave no tokens; use --dataset instead");
  return {ids.begin(), ids.end()};
}

HttpReply Caller::call(const std::string& target, const std::string& body) {
  auto reply = asio::co_spawn(io_, client_.request(target, body), asio::use_future);
  io_.restart();
  io_.run();
  try {
    return reply.get();
  } catch (const boost::system::system_error& e) {
    throw std::runtime_error("no answer from " + url_ + target + ": " + e.code().message() +
                             "; is the server running there? (--url)");
  }
}

Json Caller::call_json(const std::string& target, const std::string& body) {
  const HttpReply reply = call(target, body);
  Json json = Json::parse(reply.body, nullptr, false);
  if (reply.status != 200 || !json.is_object()) {
    throw std::runtime_error(url_ + target + " answered HTTP " + std::to_string(reply.status) +
                             ": " + reply.body.substr(0, 300));
  }
  return json;
}

std::vector<std::string> random_bodies(const BenchConfig& c,
                                       const std::string& model,
                                       Caller& caller) {
  const std::vector<int32_t> ids = ordinary_ids(caller, model);
  std::mt19937_64 random(c.seed);
  std::vector<std::string> bodies;
  for (int64_t i = 0; i < c.num_prompts; ++i) {
    Json prompt = Json::array();
    for (int64_t k = 0; k < c.random_input_len; ++k) prompt.push_back(ids[random() % ids.size()]);
    if (c.endpoint == "chat") {  // chat takes text: about as many tokens, and the template's
      prompt = caller.call_json("/detokenize", Json{{"model", model}, {"tokens", prompt}}.dump())
                   .value("prompt", "");
    }
    bodies.push_back(request_body(c, model, prompt, c.random_output_len).dump());
  }
  return bodies;
}

std::vector<std::string> dataset_bodies(const BenchConfig& c, const std::string& model) {
  std::ifstream file(c.dataset);
  if (!file) throw ConfigError("--dataset: cannot read " + c.dataset);
  std::vector<std::string> bodies;
  std::string line;
  for (int number = 1; std::getline(file, line) && std::ssize(bodies) < c.num_prompts; ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const Json entry = Json::parse(line, nullptr, false);
    const bool is_chat = c.endpoint == "chat";
    const char* key =
        is_chat && entry.is_object() && entry.contains("messages") ? "messages" : "prompt";
    const bool usable =
        entry.is_object() && entry.contains(key) &&
        (entry[key].is_string() || (entry[key].is_array() && (!is_chat || key[0] == 'm')));
    const Json length = entry.is_object() && entry.contains("output_len")
                            ? entry["output_len"]
                            : Json(c.random_output_len);
    if (!usable || !length.is_number_integer()) {
      throw ConfigError(c.dataset + ":" + std::to_string(number) + ": must be an object with " +
                        (is_chat ? "messages or a text prompt" : "prompt (text or token ids)") +
                        " and, if any, a whole output_len");
    }
    bodies.push_back(request_body(c, model, entry[key], length.get<int64_t>()).dump());
  }
  if (bodies.empty()) throw ConfigError("--dataset: " + c.dataset + " has no prompts");
  const size_t distinct = bodies.size();
  while (std::ssize(bodies) < c.num_prompts) bodies.push_back(bodies[bodies.size() - distinct]);
  return bodies;
}

}  // namespace headwater::cli
