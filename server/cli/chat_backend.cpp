#include "server/cli/chat_backend.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_future.hpp>
#include <chrono>
#include <csignal>
#include <exception>
#include <future>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "server/api/service.h"
#include "server/cli/http_client.h"

namespace headwater::cli {
namespace {

namespace asio = boost::asio;
using Json = nlohmann::ordered_json;

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// The message of an error body, or the body.
std::string error_text(const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  const Json::json_pointer message("/error/message");
  return json.is_object() && json.contains(message) && json[message].is_string()
             ? json[message].get<std::string>()
             : body.substr(0, 300);
}

class HttpBackend final : public ChatBackend {
 public:
  HttpBackend(const std::string& url, const std::string& api_key, std::string model)
      : url_(url), model_(std::move(model)), client_(io_, parse_url(url), api_key) {
    if (model_.empty()) model_ = first_model();
  }

  Answer answer(const Json& messages,
                const ChatSampling& sampling,
                const std::function<void(const std::string&)>& on_text) override {
    Json body = {{"model", model_},
                 {"messages", messages},
                 {"temperature", sampling.temperature},
                 {"top_p", sampling.top_p},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
    if (sampling.max_tokens > 0) body["max_completion_tokens"] = sampling.max_tokens;
    if (sampling.seed > 0) body["seed"] = sampling.seed;

    Answer answer;
    std::string failure;
    const Stopwatch watch;
    const std::function<void(std::string_view)> on_data = [&](std::string_view payload) {
      take_event(payload, watch, on_text, answer, failure);
    };
    io_.restart();
    asio::signal_set interrupt(io_, SIGINT);
    interrupt.async_wait([&](const boost::system::error_code& error, int) {
      if (error) return;
      answer.cancelled = true;
      client_.close();
    });
    const std::string text = body.dump(-1, ' ', false, Json::error_handler_t::replace);
    std::exception_ptr broken;
    HttpReply reply;
    asio::co_spawn(io_,
                   client_.stream("/v1/chat/completions", text, on_data),
                   [&](std::exception_ptr error, HttpReply got) {
                     broken = error;
                     reply = std::move(got);
                     interrupt.cancel();
                   });
    io_.run();
    answer.total_s = watch.seconds();
    if (answer.cancelled) return answer;
    rethrow_readable(broken);
    if (reply.status != 200) throw std::runtime_error(error_text(reply.body));
    if (!failure.empty()) throw std::runtime_error(failure);
    return answer;
  }

  std::string description() const override { return model_ + " at " + url_; }

 private:
  static void take_event(std::string_view payload,
                         const Stopwatch& watch,
                         const std::function<void(const std::string&)>& on_text,
                         Answer& answer,
                         std::string& failure) {
    const Json event = Json::parse(payload, nullptr, false);
    if (!event.is_object()) return;
    if (event.contains("error")) failure = error_text(std::string(payload));
    const Json::json_pointer content("/choices/0/delta/content");
    if (event.contains(content) && event[content].is_string()) {
      const auto piece = event[content].get<std::string>();
      if (answer.text.empty() && !piece.empty()) answer.first_s = watch.seconds();
      answer.text += piece;
      on_text(piece);
      ++answer.tokens;  // about one a chunk, until usage says it exactly
    }
    const Json::json_pointer tokens("/usage/completion_tokens");
    if (event.contains(tokens) && event[tokens].is_number_integer()) {
      answer.tokens = event[tokens].get<int64_t>();
    }
  }

  void rethrow_readable(const std::exception_ptr& broken) const {
    if (broken == nullptr) return;
    try {
      std::rethrow_exception(broken);
    } catch (const boost::system::system_error& e) {
      throw std::runtime_error("no answer from " + url_ + ": " + e.code().message() +
                               "; is the server running there? (--url)");
    }
  }

  std::string first_model() {
    std::exception_ptr broken;
    HttpReply reply;
    asio::co_spawn(
        io_, client_.request("/v1/models", ""), [&](std::exception_ptr error, HttpReply got) {
          broken = error;
          reply = std::move(got);
        });
    io_.run();
    rethrow_readable(broken);
    const Json json = Json::parse(reply.body, nullptr, false);
    const Json::json_pointer id("/data/0/id");
    if (reply.status != 200 || !json.is_object() || !json.contains(id) || !json[id].is_string()) {
      throw std::runtime_error(url_ + "/v1/models answered HTTP " + std::to_string(reply.status) +
                               ": " + error_text(reply.body));
    }
    return json[id].get<std::string>();
  }

  const std::string url_;
  std::string model_;
  asio::io_context io_;
  HttpClient client_;
};

class EngineBackend final : public ChatBackend {
 public:
  explicit EngineBackend(std::unique_ptr<Engine> engine)
      : engine_(std::move(engine)), service_(lifecycle_, ServerConfig{}) {
    if (engine_->chat_template() == nullptr) {
      throw ConfigError("model: " + engine_->model_info().id +
                        " has no chat template; give one with --chat-template");
    }
    service_.attach(*engine_);
  }

  ~EngineBackend() override { engine_->drain(std::chrono::milliseconds(0)); }

  Answer answer(const Json& messages,
                const ChatSampling& sampling,
                const std::function<void(const std::string&)>& on_text) override {
    auto prompt = service_.prompts().chat({{"messages", messages}});
    if (!prompt.ok()) throw std::runtime_error(prompt.status().message);
    api::GenerationRequest request;
    request.label = "chat";
    request.prompts.push_back(std::move(prompt).value());
    request.options.sampling.temperature = static_cast<float>(sampling.temperature);
    request.options.sampling.top_p = static_cast<float>(sampling.top_p);
    if (sampling.seed > 0) request.options.sampling.seed = sampling.seed;
    if (sampling.max_tokens > 0) {
      request.options.max_tokens = static_cast<int32_t>(sampling.max_tokens);
    }

    Answer answer;
    Status failure;
    const Stopwatch watch;
    io_.restart();
    asio::signal_set interrupt(io_, SIGINT);
    auto keep_running = asio::make_work_guard(io_);
    const auto stop = [&] {
      answer.total_s = watch.seconds();
      interrupt.cancel();
      keep_running.reset();
    };
    const auto on_delta = [&](const api::Delta& delta) {
      if (answer.text.empty() && !delta.text.empty()) answer.first_s = watch.seconds();
      answer.text += delta.text;
      answer.tokens = delta.so_far.completion_tokens;
      on_text(delta.text);
    };
    const auto on_done = [&](const Status& status, const api::GenerationUsage& usage) {
      failure = status;
      answer.tokens = usage.completion_tokens;
      stop();
    };
    auto generation =
        service_.submit(std::move(request),
                        [this](std::function<void()> task) { asio::post(io_, std::move(task)); },
                        {on_delta, on_done});
    if (!generation.ok()) throw std::runtime_error(generation.status().message);
    interrupt.async_wait([&](const boost::system::error_code& error, int) {
      if (error) return;
      answer.cancelled = true;
      generation.value()->cancel();
      stop();
    });
    io_.run();
    if (!failure.ok()) throw std::runtime_error(failure.message);
    return answer;
  }

  std::string description() const override {
    const ModelInfo& info = engine_->model_info();
    return info.id + " (" + info.weight_format + ", in this process)";
  }

 private:
  asio::io_context io_;  // events arrive here; outlives the engine, which posts to it
  std::unique_ptr<Engine> engine_;
  Lifecycle lifecycle_;
  api::Service service_;
};

}  // namespace

std::unique_ptr<ChatBackend> make_http_backend(const std::string& url,
                                               const std::string& api_key,
                                               const std::string& model) {
  return std::make_unique<HttpBackend>(url, api_key, model);
}

std::unique_ptr<ChatBackend> make_engine_backend(std::unique_ptr<Engine> engine) {
  return std::make_unique<EngineBackend>(std::move(engine));
}

}  // namespace headwater::cli
