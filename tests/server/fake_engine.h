// FakeEngine: an Engine whose model answers every request with a scripted text, one byte a token.
// ByteTokenizer: ids 0..255 are bytes, then two control tokens.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace headwater::test {

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kStart = 256, kEnd = 257;

  ByteTokenizer() {
    for (int i = 0; i < 256; ++i) texts_.emplace_back(1, static_cast<char>(i));
    texts_.emplace_back("<|im_start|>");
    texts_.emplace_back("<|im_end|>");
  }
  std::vector<int32_t> encode(std::string_view text, bool, bool parse_special) const override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size();) {
      int32_t id = static_cast<unsigned char>(text[i]);
      for (const int32_t special : {kStart, kEnd}) {
        if (parse_special && text.substr(i).starts_with(token_text(special))) id = special;
      }
      ids.push_back(id);
      i += token_text(id).size();
    }
    return ids;
  }
  std::string token_bytes(int32_t id, bool with_special) const override {
    return is_control(id) && !with_special ? "" : texts_[static_cast<size_t>(id)];
  }
  std::string_view token_text(int32_t id) const override { return texts_[static_cast<size_t>(id)]; }
  bool is_control(int32_t id) const override { return id >= kStart; }
  SpecialRule special_rule(int32_t id) const override {
    return id == kEnd ? end_rule : SpecialRule{};
  }
  int32_t vocab_size() const override { return kEnd + 1; }
  int32_t bos() const override { return -1; }
  int32_t eos() const override { return kEnd; }
  bool adds_bos() const override { return false; }
  const std::vector<int32_t>& eog_ids() const override { return eog_; }
  int32_t find(std::string_view token) const override {
    for (int32_t id = 0; id < vocab_size(); ++id) {
      if (texts_[static_cast<size_t>(id)] == token) return id;
    }
    return -1;
  }

  SpecialRule end_rule;  // what <|im_end|> does, in a prompt that spells a control token

 private:
  std::vector<std::string> texts_;
  std::vector<int32_t> eog_ = {kEnd};
};

inline constexpr const char* kChatMl =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// Set before the request it is for.
struct Script {
  std::string text = "Hello, world";  // then end-of-sequence
  bool endless = false;               // instead: text again and again
  bool held = false;                  // instead: its prompt, one token for each release()
  std::chrono::milliseconds step{0};
  int fail_at = -1;  // token index that fails instead
  Status accept;     // can_accept() and submit()
};

class FakeEngine final : public Engine {
 public:
  explicit FakeEngine(int32_t max_model_len = 4096) : template_(kChatMl, "test") {
    info_.id = "fake";
    info_.path = "/models/fake.gguf";
    info_.vocab_size = tokenizer_.vocab_size();
    info_.max_model_len = max_model_len;
    info_.created = 1700000000;
  }
  ~FakeEngine() override {
    drain(std::chrono::milliseconds(0));
    for (std::thread& thread : threads_) thread.join();
  }

  const ModelInfo& model_info() const override { return info_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  const ChatTemplate* chat_template() const override { return &template_; }
  const std::vector<int32_t>& eos_token_ids() const override { return tokenizer_.eog_ids(); }
  RequestId next_request_id() override { return ++last_id_; }
  Status can_accept() const override {
    const std::lock_guard lock(mutex_);
    return script_.accept;
  }
  Status submit(Request request) override {
    const std::lock_guard lock(mutex_);
    if (!script_.accept.ok()) return script_.accept;
    if (Status status = validate(request.sampling, info_.vocab_size); !status.ok()) return status;
    requests_.push_back(request);
    requests_.back().sink = nullptr;
    num_running_ += 1;
    num_started_ += 1;
    if (script_.held) {
      Script echo = script_;
      echo.text.assign(request.prompt.begin(), request.prompt.end());
      held_.push_back({std::move(echo), std::move(request)});
      return Status::Ok();
    }
    threads_.emplace_back(
        [this, script = script_, r = std::move(request)]() mutable { run(script, std::move(r)); });
    return Status::Ok();
  }
  void cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    cancelled_.insert(id);
    changed_.notify_all();
  }
  void stop_choice(RequestId id, int32_t choice) override {
    const std::lock_guard lock(mutex_);
    stopped_.insert({id, choice});
  }
  EngineStats stats() const override {
    EngineStats stats = initial_stats(info_.max_model_len);
    stats.num_running = num_running_;
    return stats;
  }
  bool healthy() const override { return true; }
  bool drain(std::chrono::milliseconds timeout) override {
    std::unique_lock lock(mutex_);
    const bool idle = changed_.wait_for(lock, timeout, [this] { return num_running_ == 0; });
    stopping_ = true;
    changed_.notify_all();
    return idle;
  }

  void set_script(Script script) {
    const std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }
  int num_held() const {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(held_.size());
  }
  // Gives every held request its next token, on the caller's thread.
  void release() {
    std::vector<Held> held;
    {
      const std::lock_guard lock(mutex_);
      held.swap(held_);
    }
    std::erase_if(held, [this](Held& h) {
      TokenEvent event;
      event.usage = {static_cast<int32_t>(h.request.prompt.size()), 3, 100, 400};
      next_token(h.script, h.request, h.num_tokens++, event);
      const bool ends = event.finish != FinishReason::kNone;
      return !h.request.sink->on_event(std::move(event)) || ends;
    });
    const std::lock_guard lock(mutex_);
    std::move(held.begin(), held.end(), std::back_inserter(held_));
    num_running_ = static_cast<int>(held_.size());
    changed_.notify_all();
  }
  Request last_request() const {
    const std::lock_guard lock(mutex_);
    return requests_.back();
  }
  int num_running() const { return num_running_; }
  int num_started() const { return num_started_; }  // since the engine began
  bool wait_idle(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [this] { return num_running_ == 0; });
  }

 private:
  struct Held {
    Script script;
    Request request;
    int32_t num_tokens = 0;
  };

  bool is_cancelled(RequestId id, std::chrono::milliseconds wait) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, wait, [&] { return stopping_ || cancelled_.count(id) > 0; });
  }

  bool is_stopped(RequestId id, int32_t choice) {
    const std::lock_guard lock(mutex_);
    return stopped_.count({id, choice}) > 0;
  }

  static TokenLogprobs logprobs_of(int32_t token, int32_t num_top) {
    TokenLogprobs entry{{token, -0.5f}, {}};
    for (int32_t i = 0; i < num_top; ++i) entry.top.push_back({(token + i) % 128, -0.5f - i});
    return entry;
  }

  void run(const Script& script, Request request) {
    const int32_t k = request.sampling.logprobs;
    std::vector<bool> ended(static_cast<size_t>(request.n), false);
    int num_open = request.n;
    for (int32_t t = 0; num_open > 0; ++t) {
      const bool cancelled = is_cancelled(request.id, script.step);
      for (int32_t c = 0; c < request.n; ++c) {
        if (ended[static_cast<size_t>(c)]) continue;
        TokenEvent event;
        event.choice = c;
        event.usage = {static_cast<int32_t>(request.prompt.size()), 3, 100, 400};
        if (t == 0 && c == 0 && request.sampling.prompt_logprobs >= 0) {
          for (size_t i = 1; i < request.prompt.size(); ++i) {
            event.prompt_logprobs.push_back(
                logprobs_of(request.prompt[i], request.sampling.prompt_logprobs));
          }
        }
        if (cancelled) {
          event.finish = FinishReason::kAbort;
        } else if (is_stopped(request.id, c)) {
          event.finish = FinishReason::kStop;
        } else if (t == script.fail_at) {
          event.finish = FinishReason::kError;
          event.error = {StatusCode::kInternal, "the device failed", ""};
        } else {
          next_token(script, request, t, event);
          if (k >= 0) event.logprobs.push_back(logprobs_of(event.tokens[0], k));
        }
        if (event.finish != FinishReason::kNone) {
          ended[static_cast<size_t>(c)] = true;
          --num_open;
        }
        if (!request.sink->on_event(std::move(event))) num_open = 0;
      }
    }
    request.sink.reset();
    const std::lock_guard lock(mutex_);
    num_running_ -= 1;
    changed_.notify_all();
  }

  static void next_token(const Script& script,
                         const Request& request,
                         int32_t t,
                         TokenEvent& event) {
    const auto length = static_cast<int32_t>(script.text.size());
    const bool eos = !script.endless && t == length;
    const int32_t token =
        eos ? ByteTokenizer::kEnd
            : static_cast<unsigned char>(script.text[static_cast<size_t>(t % length)]);
    event.tokens.push_back(token);
    bool stop = eos;
    for (const int32_t id : request.sampling.stop_token_ids) stop = stop || id == token;
    if (stop) {
      event.finish = FinishReason::kStop;
      event.stop_token = token;
    } else if (t + 1 == request.sampling.max_tokens) {
      event.finish = FinishReason::kLength;
    }
  }

  ModelInfo info_;
  ByteTokenizer tokenizer_;
  ChatTemplate template_;
  std::atomic<RequestId> last_id_{0};
  std::atomic<int> num_running_{0};
  std::atomic<int> num_started_{0};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  Script script_;
  std::vector<Request> requests_;
  std::vector<Held> held_;
  std::set<RequestId> cancelled_;
  std::set<std::pair<RequestId, int32_t>> stopped_;
  std::vector<std::thread> threads_;
};

}  // namespace headwater::test
