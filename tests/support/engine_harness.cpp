#include "tests/support/engine_harness.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "engine/attention/policy_table.h"
#include "engine/log.h"

namespace headwater::testing {
namespace {

class CollectingSink final : public TokenSink {
 public:
  CollectingSink(std::shared_ptr<Collected> collected, std::function<bool()> listens)
      : collected_(std::move(collected)), listens_(std::move(listens)) {}

  bool on_event(TokenEvent event) override {
    Collected::Choice& choice = collected_->choices.at(static_cast<size_t>(event.choice));
    choice.tokens.insert(choice.tokens.end(), event.tokens.begin(), event.tokens.end());
    std::ranges::move(event.logprobs, std::back_inserter(choice.logprobs));
    std::ranges::move(event.prompt_logprobs, std::back_inserter(collected_->prompt_logprobs));
    if (event.finish != FinishReason::kNone) {
      ++choice.terminal_events;
      choice.finish = event.finish;
      choice.stop_token = event.stop_token;
      choice.error = event.error;
      choice.usage = event.usage;
    }
    return !listens_ || listens_();
  }

 private:
  std::shared_ptr<Collected> collected_;
  std::function<bool()> listens_;
};

constexpr int32_t kPromptLogitRows = 32;

}  // namespace

bool Collected::done() const {
  return std::ranges::all_of(choices, [](const Choice& c) { return c.terminal_events > 0; });
}

EngineHarness::EngineHarness(const LoadedModel& files, const HarnessOptions& options)
    : pool_(options.threads), ops_(testing::make_ops(options.device, pool_)) {
  log::set_level("warn");
  const ModelSpec& spec = files.spec;
  const HeadShape& heads = spec.layers[0].heads;
  const auto num_heads = spec.layers.size() * static_cast<size_t>(heads.num_kv_heads);
  const PageShape page{ops_->default_kv_format(), heads.head_dim, options.page_tokens, 0};
  std::vector<kv::RetentionRule> rules =
      options.rules.empty() ? std::vector<kv::RetentionRule>(num_heads) : options.rules;
  fit_to_layers(spec, rules);

  const Model::Limits limits{std::max(options.max_num_batched_tokens, options.max_num_seqs),
                             options.max_num_seqs + kPromptLogitRows,
                             2};
  model_ = std::make_unique<Model>(files, *ops_, limits);
  EngineCore::Options core;
  core.limits = {
      options.max_num_seqs, limits.max_rows, limits.max_logit_rows, options.max_itl_stretch};
  core.kv = {.arena_bytes = options.kv_pages * page.page_bytes(),
             .superblock_bytes = 4 * page.page_bytes(),
             .max_sequences = options.max_num_seqs,
             .max_tokens = options.max_model_len,
             .prefix_caching = options.prefix_caching};
  core.max_model_len = options.max_model_len;
  core.eos_token_ids = files.eos_token_ids;
  core.dense = std::ranges::all_of(rules, &kv::RetentionRule::keeps_all_seen);
  core.faithful = options.faithful;
  core.seed = 1;
  core.check_invariants = options.check_invariants;
  core.overlap = options.overlap || !ops_->memory_is_host();
  core_ = std::make_unique<EngineCore>(
      *model_,
      *ops_,
      pool_,
      kv::KvGeometry(static_cast<int32_t>(spec.layers.size()), heads.num_kv_heads, rules, page),
      core);
}

std::shared_ptr<Collected> EngineHarness::add(Request request, std::function<bool()> listens) {
  auto collected = std::make_shared<Collected>();
  collected->choices.resize(static_cast<size_t>(request.n));
  request.id = request.id != 0 ? request.id : next_id_++;
  request.sink = std::make_shared<CollectingSink>(collected, std::move(listens));
  core_->add(std::move(request));
  return collected;
}

void EngineHarness::run() {
  while (core_->step()) {
  }
}

Collected EngineHarness::generate(Request request) {
  const std::shared_ptr<Collected> collected = add(std::move(request));
  run();
  return *collected;
}

void require_same(const TestDevice& device, const Collected& a, const Collected& b) {
  const float most = tolerance(device);
  REQUIRE(a.choices.size() == b.choices.size());
  for (size_t c = 0; c < a.choices.size(); ++c) {
    const Collected::Choice &x = a.choices[c], &y = b.choices[c];
    if (device.exact) {
      REQUIRE(x.tokens == y.tokens);
      REQUIRE(x.finish == y.finish);
      REQUIRE(x.logprobs.size() == y.logprobs.size());
    }
    for (size_t i = 0; i < std::min(x.logprobs.size(), y.logprobs.size()); ++i) {
      CAPTURE(device, c, i);
      const TokenLogprobs &p = x.logprobs[i], &q = y.logprobs[i];
      REQUIRE(p.top.size() == q.top.size());
      for (size_t k = 0; k < p.top.size(); ++k)
        REQUIRE(std::abs(p.top[k].logprob - q.top[k].logprob) <= most);
      if (x.tokens[i] != y.tokens[i]) break;
      REQUIRE(std::abs(p.chosen.logprob - q.chosen.logprob) <= most);
    }
  }
}

Request make_request(std::vector<int32_t> prompt, int32_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

}  // namespace headwater::testing
