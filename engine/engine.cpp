// Above 400 lines: one class, whose start and whose thread share everything.
// The engine thread and its door: validation on the caller's thread, everything else behind the
// inbox.
#include "engine/engine.h"

#include <algorithm>
#include <condition_variable>
#include <fstream>
#include <iterator>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/attention/policy_table.h"
#include "engine/engine_core.h"
#include "engine/inbox.h"
#include "engine/kv_budget.h"
#include "engine/log.h"
#include "engine/model/loaded_model.h"
#include "kernels/make_ops.h"

namespace headwater {
namespace {

constexpr int32_t kPromptLogitRows = 64;  // of one step, for prompt logprobs

DType kv_format(const std::string& name, const Ops& ops) {
  if (name == "auto") return ops.default_kv_format();
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
    if (name == dtype_name(dtype)) return dtype;
  throw ConfigError("kv-cache-dtype must be auto, f32, f16 or bf16, got \"" + name + "\"");
}

std::string read_template(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw ConfigError("chat-template: cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string base_name(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  const std::string trimmed = path.substr(0, end + 1);
  return trimmed.substr(trimmed.find_last_of('/') + 1);
}

Status draining_status() { return {StatusCode::kUnavailable, "the server is shutting down", ""}; }

std::unique_ptr<Ops> make_device(const EngineConfig& config, ThreadPool& pool) {
  auto ops = make_ops(config.device, pool, {.deterministic = config.deterministic});
  if (config.device == "auto" && ops->name() != "cuda")
    log::info("engine", "running on the CPU", {{"why", cuda_obstacle()}});
  return ops;
}

class ThreadedEngine final : public Engine {
 public:
  ThreadedEngine(const EngineConfig& config,
                 const LoadProgress& progress,
                 const DeviceMaker& make_device)
      : config_(config), pool_(config.threads), files_(load(config, progress)) {
    auto lap_start = Clock::now();
    const auto lap = [&] {  // seconds since the last
      const auto begin = std::exchange(lap_start, Clock::now());
      return seconds_between(begin, lap_start);
    };
    ops_ = make_device(config, pool_);
    const double device_s = lap();
    const DeviceBytes at_start = ops_->device_memory();
    const ModelSpec& spec = files_->spec;
    const HeadShape& heads = spec.layers[0].heads;
    const AttentionPlan plan = plan_attention(config, *files_);
    const PageShape page{
        kv_format(config.kv_cache_dtype, *ops_), heads.head_dim, config.block_size, 0};
    if (!ops_->supports_kv(page))
      throw ConfigError(std::string(ops_->name()) + " cannot keep KV pages of " +
                        std::to_string(page.page_tokens) + " tokens (block-size), head size " +
                        std::to_string(page.head_dim) + ", " + dtype_name(page.format) +
                        " (kv-cache-dtype)");
    kv::KvGeometry geometry(
        static_cast<int32_t>(spec.layers.size()), heads.num_kv_heads, plan.rules, page);
    const Model::Limits limits{std::max(config.max_num_batched_tokens, config.max_num_seqs),
                               config.max_num_seqs + kPromptLogitRows,
                               ops_->memory_is_host() ? 1 : 2};
    const auto load_weights = [&] {
      if (progress) progress("weights", 0, files_->weight_bytes);
      model_ = std::make_unique<Model>(*files_, *ops_, limits, [&](int64_t done, int64_t total) {
        if (progress) progress("weights", done, total);
      });
    };
    // A host refuses before it loads; a GPU's pool takes what the weights leave.
    if (!ops_->memory_is_host()) load_weights();
    const KvBudget budget =
        plan_kv_budget(config, spec, geometry, plan.faithful, most_pool_bytes(geometry, at_start));
    if (ops_->memory_is_host()) load_weights();
    const double weights_s = lap();
    for (const MappedFile& file : files_->files) file.drop_resident();
    const double unmap_s = lap();
    tokenizer_ = make_tokenizer(files_->vocabulary);
    load_template();
    eos_ids_ = tokenizer_->eog_ids();
    for (int32_t id : files_->eos_token_ids)
      if (std::find(eos_ids_.begin(), eos_ids_.end(), id) == eos_ids_.end()) eos_ids_.push_back(id);

    const double tokenizer_s = lap();
    EngineCore::Options options;
    options.limits = {
        config.max_num_seqs, limits.max_rows, limits.max_logit_rows, config.max_itl_stretch};
    options.kv = {budget.arena_bytes,
                  budget.superblock_bytes,
                  config.max_num_seqs,
                  budget.max_model_len,
                  config.enable_prefix_caching};
    options.max_model_len = budget.max_model_len;
    options.eos_token_ids = eos_ids_;
    options.dense = plan.num_full() == geometry.num_heads();
    options.faithful = plan.faithful;
    options.seed = config.seed;
    options.check_invariants = config.check_invariants;
    options.overlap = !ops_->memory_is_host();
    describe(plan, geometry, budget);
    core_ = std::make_unique<EngineCore>(*model_, *ops_, pool_, std::move(geometry), options);
    log::info("engine",
              "loaded",
              {{"device_s", device_s},
               {"weights_s", weights_s},
               {"unmap_s", unmap_s},
               {"tokenizer_s", tokenizer_s},
               {"pool_s", lap()}});
    stats_ = core_->stats();
    thread_ = std::thread([this] { run(); });
  }

  ~ThreadedEngine() override {
    inbox_.push(AbortAllCommand{draining_status()});
    inbox_.push(StopCommand{});
    thread_.join();
  }

  const ModelInfo& model_info() const override { return info_; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  const ChatTemplate* chat_template() const override { return template_.get(); }
  const std::vector<int32_t>& eos_token_ids() const override { return eos_ids_; }
  RequestId next_request_id() override { return next_id_.fetch_add(1); }

  Status can_accept() const override {
    if (!healthy_) return {StatusCode::kInternal, "the engine failed; see the server's log", ""};
    if (draining_) return draining_status();
    const int64_t seats = std::max<int64_t>(0, config_.max_num_seqs - num_running_);
    if (num_posted_ + num_waiting_ >= config_.max_queue + seats)
      return {StatusCode::kResourceExhausted,
              "the queue is full: " + std::to_string(config_.max_queue) +
                  " requests wait (option max-queue); retry later",
              ""};
    return Status::Ok();
  }

  Status submit(Request request) override {
    if (Status status = can_accept(); !status.ok()) return status;
    if (Status status = check(request); !status.ok()) return status;
    ++num_posted_;
    inbox_.push(std::move(request));
    return Status::Ok();
  }

  void cancel(RequestId id) override { inbox_.push(CancelCommand{id}); }
  void stop_choice(RequestId id, int32_t choice) override {
    inbox_.push(StopChoiceCommand{id, choice});
  }

  EngineStats stats() const override {
    const std::lock_guard lock(stats_mutex_);
    return stats_;
  }
  bool healthy() const override { return healthy_; }

  bool drain(std::chrono::milliseconds timeout) override {
    draining_ = true;
    const auto until = Clock::now() + timeout;
    {
      std::unique_lock lock(stats_mutex_);
      if (idle_.wait_until(lock, until, [&] { return num_live() == 0; })) return true;
    }
    inbox_.push(AbortAllCommand{draining_status()});
    std::unique_lock lock(stats_mutex_);
    idle_.wait(lock, [&] { return num_live() == 0; });
    return false;
  }

 private:
  // Where kv-cache-bytes does not say.
  int64_t most_pool_bytes(const kv::KvGeometry& geometry, const DeviceBytes& at_start) const {
    if (config_.kv_cache_bytes > 0) return 0;
    if (ops_->memory_is_host()) return available_memory_bytes() / 4;
    const DeviceBudget budget =
        plan_device_budget(config_.gpu_memory_utilization,
                           at_start,
                           ops_->device_memory().free_bytes,
                           step_scratch_bytes(config_, files_->spec, geometry));
    log::info("engine",
              "device memory",
              {{"gpu_memory_utilization", config_.gpu_memory_utilization},
               {"total_bytes", at_start.total_bytes},
               {"share_bytes", budget.share_bytes},
               {"weights_bytes", budget.loaded_bytes},
               {"scratch_bytes", budget.scratch_bytes},
               {"kv_pool_at_most_bytes", budget.pool_bytes}});
    return budget.pool_bytes;
  }

  static std::unique_ptr<LoadedModel> load(const EngineConfig& config,
                                           const LoadProgress& progress) {
    if (config.model.empty())
      throw ConfigError("model is not set: give a GGUF file or a model folder (--model PATH)");
    if (progress) progress("files", 0, 1);
    auto files = load_model(config.model);
    if (progress) progress("files", 1, 1);
    return files;
  }

  void load_template() {
    const std::string source = config_.chat_template.empty() ? files_->chat_template
                                                             : read_template(config_.chat_template);
    if (!source.empty())
      template_ = std::make_unique<ChatTemplate>(
          source, config_.chat_template.empty() ? config_.model : config_.chat_template);
  }

  void describe(const AttentionPlan& plan, const kv::KvGeometry& geometry, const KvBudget& budget) {
    info_.id =
        config_.served_model_name.empty() ? base_name(config_.model) : config_.served_model_name;
    info_.path = config_.model;
    info_.architecture = files_->spec.architecture;
    info_.weight_format = files_->weight_format;
    info_.weight_bytes = files_->weight_bytes;
    info_.num_parameters = files_->num_parameters;
    info_.vocab_size = files_->spec.vocab_size;
    info_.max_model_len = budget.max_model_len;
    info_.device = std::string(ops_->description());
    info_.attention = plan.policy;
    if (!plan.table.empty()) info_.head_table = plan.table + " (" + plan.method + ")";
    info_.num_kv_heads = geometry.num_heads();
    info_.num_full_heads = plan.num_full();
    info_.kv_sequence_bytes = geometry.bytes_for(budget.max_model_len, false);
    info_.kv_sequence_bytes_dense = geometry.dense_cache_bytes(budget.max_model_len);
    least_budget_ = geometry.least_kept_tokens();
    has_shards_ = std::ranges::any_of(
        geometry.groups(), [](const kv::KvGroup& group) { return group.rule.shard_stride > 0; });
    max_dense_len_ = budget.max_dense_len;
    for (const std::string& remark : plan.remarks)
      log::info("engine", "head table", {{"remark", remark}});
    info_.created = std::chrono::duration_cast<std::chrono::seconds>(
                        std::chrono::system_clock::now().time_since_epoch())
                        .count();
  }

  Status check(const Request& request) const {
    if (Status status = validate(request.sampling, info_.vocab_size); !status.ok()) return status;
    if (request.prompt.empty()) return invalid_argument("the prompt is empty", "prompt");
    for (int32_t id : request.prompt)
      if (id < 0 || id >= info_.vocab_size)
        return invalid_argument("token id " + std::to_string(id) +
                                    " is outside the vocabulary of " +
                                    std::to_string(info_.vocab_size),
                                "prompt");
    if (request.n < 1 || request.n > 128)
      return invalid_argument("n must be between 1 and 128, got " + std::to_string(request.n), "n");
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    if (prompt + std::min(request.sampling.max_tokens, 1) > info_.max_model_len)
      return {StatusCode::kContextLength,
              "the prompt has " + std::to_string(prompt) + " tokens; the model takes " +
                  std::to_string(info_.max_model_len) + " with the output",
              "prompt"};
    return check_attention(request);
  }

  // The attention field narrows what the server runs; it never widens it, but for dense.
  Status check_attention(const Request& request) const {
    const AttentionRequest& asked = request.attention;
    const bool dense = asked.policy == "dense" && info_.attention != "dense";
    if (!asked.policy.empty() && find_policy(asked.policy) == nullptr)
      return invalid_argument(
          "attention.policy must be one of " + policy_names() + ", got \"" + asked.policy + "\"",
          "attention.policy");
    if (!asked.policy.empty() && asked.policy != "dense" && asked.policy != info_.attention)
      return invalid_argument("attention.policy \"" + asked.policy +
                                  "\" is not what this server runs: \"" + info_.attention + "\"" +
                                  (config_.allow_dense_requests ? " or \"dense\"" : ""),
                              "attention.policy");
    if (dense && !config_.allow_dense_requests)
      return invalid_argument(
          "attention.policy \"dense\" is not allowed by this server, which runs \"" +
              info_.attention + "\" (option allow-dense-requests)",
          "attention.policy");
    const int64_t length =
        static_cast<int64_t>(request.prompt.size()) + std::min(request.sampling.max_tokens, 1);
    if (dense && length > max_dense_len_)
      return {StatusCode::kContextLength,
              "the KV pool holds " + std::to_string(max_dense_len_) +
                  " tokens of a dense sequence; this prompt has " +
                  std::to_string(request.prompt.size()),
              "prompt"};
    if (asked.selection_budget)
      return invalid_argument(
          "attention.selection_budget bounds what a selecting policy reads per "
          "step; this server runs \"" +
              info_.attention + "\", which selects nothing",
          "attention.selection_budget");
    return asked.kv_budget ? check_budget(*asked.kv_budget, dense) : Status::Ok();
  }

  Status check_budget(int64_t budget, bool dense) const {
    const auto refuse = [](std::string why) {
      return invalid_argument(std::move(why), "attention.kv_budget");
    };
    if (dense || least_budget_ == 0)
      return refuse("attention.kv_budget bounds what compressed heads keep; dense has none");
    if (has_shards_)
      return refuse("attention.kv_budget cannot bound the shards that policy \"" + info_.attention +
                    "\" keeps");
    if (budget < least_budget_)
      return refuse("attention.kv_budget must be at least " + std::to_string(least_budget_) +
                    " tokens (sinks and a block), got " + std::to_string(budget));
    if (config_.max_kv_budget > 0 && budget > config_.max_kv_budget)
      return refuse("attention.kv_budget must be at most " + std::to_string(config_.max_kv_budget) +
                    " tokens (option max-kv-budget), got " + std::to_string(budget));
    return Status::Ok();
  }

  void run() {
    try {
      for (bool working = false; !stopped_;) {
        handle(working ? inbox_.take() : inbox_.wait(core_->next_deadline()));
        working = core_->step() || !core_->idle();
        refresh();
      }
    } catch (const std::exception& error) {
      fail(error.what());
    }
  }

  // The device is gone: answer everybody, from now on with an error at once.
  void fail(const std::string& what) {
    healthy_ = false;
    log::error("engine", "engine failed", {{"error", what}});
    core_->end_all({StatusCode::kInternal, "the engine failed: " + what, ""});
    refresh();
    while (!stopped_) {
      for (Command& command : inbox_.wait({})) {
        if (auto* request = std::get_if<Request>(&command)) {
          --num_posted_;
          for (int32_t choice = 0; choice < request->n; ++choice) {
            TokenEvent event;
            event.choice = choice;
            event.finish = FinishReason::kError;
            event.error = {StatusCode::kInternal, "the engine failed: " + what, ""};
            request->sink->on_event(std::move(event));
          }
        }
        stopped_ = stopped_ || std::holds_alternative<StopCommand>(command);
      }
      refresh();
    }
  }

  void handle(std::vector<Command> commands) {
    for (Command& command : commands) {
      if (auto* request = std::get_if<Request>(&command)) {
        core_->add(std::move(*request));
        ++num_waiting_;
        --num_posted_;
      } else if (const auto* cancelled = std::get_if<CancelCommand>(&command)) {
        core_->end(cancelled->id, Status::Ok());
      } else if (const auto* stopped = std::get_if<StopChoiceCommand>(&command)) {
        core_->stop_choice(stopped->id, stopped->choice);
      } else if (const auto* abort = std::get_if<AbortAllCommand>(&command)) {
        core_->end_all(abort->why);
      } else {
        stopped_ = true;
      }
    }
  }

  void refresh() {
    EngineStats fresh = core_->stats();
    {
      const std::lock_guard lock(stats_mutex_);
      num_running_ = fresh.num_running;
      num_waiting_ = fresh.num_waiting;
      stats_ = std::move(fresh);
    }
    idle_.notify_all();
  }

  int64_t num_live() const { return num_posted_ + num_waiting_ + num_running_; }

  EngineConfig config_;
  ThreadPool pool_;
  std::unique_ptr<LoadedModel> files_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> template_;
  std::vector<int32_t> eos_ids_;
  ModelInfo info_;
  int32_t least_budget_ = 0;  // of attention.kv_budget; 0: no head drops tokens
  bool has_shards_ = false;
  int32_t max_dense_len_ = 0;
  std::unique_ptr<EngineCore> core_;  // engine thread only, once it runs

  Inbox inbox_;
  std::atomic<RequestId> next_id_{1};
  std::atomic<int64_t> num_posted_{0};   // in the inbox
  std::atomic<int64_t> num_waiting_{0};  // taken, not running; as of the last step
  std::atomic<int64_t> num_running_{0};
  std::atomic<bool> draining_{false};
  std::atomic<bool> healthy_{true};
  bool stopped_ = false;  // engine thread only
  mutable std::mutex stats_mutex_;
  std::condition_variable idle_;
  EngineStats stats_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Engine> make_engine(const EngineConfig& config, const LoadProgress& progress) {
  return make_engine(config, progress, make_device);
}

std::unique_ptr<Engine> make_engine(const EngineConfig& config,
                                    const LoadProgress& progress,
                                    const DeviceMaker& make_device) {
  return std::make_unique<ThreadedEngine>(config, progress, make_device);
}

}  // namespace headwater
