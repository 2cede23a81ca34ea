#include "engine/calibrate/methods.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "engine/attention/policy_table.h"
#include "engine/calibrate/gradient_methods.h"
#include "engine/calibrate/measured.h"
#include "engine/calibrate/probe.h"
#include "engine/calibrate/razor_scores.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

constexpr int32_t kStepRows = 512;
constexpr int32_t kMaxLogitRows = 128;

HeadTable new_table(const Calibration& c, std::string_view method) {
  HeadTable table;
  table.method = method;
  table.model = head_table_model(c.files);
  table.heads.assign(static_cast<size_t>(table.model.num_layers * table.model.num_kv_heads),
                     HeadTable::kCompressed);
  return table;
}

void keep_full(HeadTable& table, std::span<const int32_t> heads) {
  for (const int32_t head : heads) table.heads[static_cast<size_t>(head)] = HeadTable::kFull;
}

void note(HeadTable& table, const std::string& name, double value) {
  table.calibration.emplace_back(name, value);
}

HeadTable razor(Calibration& c) {
  const CalibrationOptions& options = c.options;
  if (options.repeats < 2)
    throw ConfigError("repeats must be at least 2, got " + std::to_string(options.repeats));
  const bool has_bos = c.tokenizer.bos() >= 0;
  const int32_t fits = (c.files.spec.max_positions - has_bos) / options.repeats;
  const int32_t block = std::min(options.block_tokens, fits);
  if (block < 2) throw ConfigError("block-tokens must be at least 2, got " + std::to_string(block));
  if (block < options.block_tokens)
    c.say("The model has " + std::to_string(c.files.spec.max_positions) + " positions: blocks of " +
          std::to_string(block) + " tokens, not " + std::to_string(options.block_tokens) + ".");
  const std::vector<int32_t> ids = ordinary_tokens(c.tokenizer);
  if (ids.empty()) throw ConfigError("the vocabulary has no plain tokens to draw from");
  const std::vector<int32_t> tokens =
      repeated_block(ids, has_bos ? c.tokenizer.bos() : -1, block, options.repeats, options.seed);

  Model model = make_model(c);
  Probe probe(model, c.ops);
  const RazorScores scores =
      razor_scores(probe, tokens, block, has_bos, [&](int64_t done, int64_t total) {
        c.progress("reading repeated blocks", done, total);
      });
  const RazorChoice choice = choose_razor(scores, options.induction, options.echo);
  HeadTable table = new_table(c, "razor");
  table.ranking = choice.ranking;
  keep_full(table, std::span(choice.ranking).first(static_cast<size_t>(choice.num_full)));
  table.scores["induction"] = scores.induction.values;
  table.scores["echo"] = scores.echo.values;
  note(table, "seed", static_cast<double>(options.seed));
  note(table, "block_tokens", block);
  note(table, "repeats", options.repeats);
  note(table, "distinct_tokens", static_cast<double>(ids.size()));
  note(table, "induction_part", options.induction);
  note(table, "echo_part", options.echo);
  return table;
}

int32_t heads_within_budget(const Calibration& c, std::span<const int32_t> order) {
  const CalibrationOptions& options = c.options;
  const auto num_heads = static_cast<int32_t>(order.size());
  if (options.budget <= 0)
    return static_cast<int32_t>(std::ceil(std::clamp(options.heads, 0.0, 1.0) * num_heads - 1e-9));
  const HeadShape& heads = c.files.spec.layers[0].heads;
  const auto layers = static_cast<int32_t>(c.files.spec.layers.size());
  const PageShape page{c.ops.default_kv_format(), heads.head_dim, 16, 0};
  int32_t best = -1;
  for (int32_t full = 0; full <= num_heads; ++full) {
    std::vector<kv::RetentionRule> rules(order.size(), find_policy("razor")->compressed);
    for (int32_t i = 0; i < full; ++i)
      rules[static_cast<size_t>(order[static_cast<size_t>(i)])] = {};
    const kv::KvGeometry geometry(layers, heads.num_kv_heads, rules, page);
    const auto bytes = static_cast<double>(geometry.bytes_for(options.budget_tokens, false));
    const auto dense = static_cast<double>(geometry.bytes_for(options.budget_tokens, true));
    if (bytes <= options.budget * dense) best = full;
  }
  if (best < 0)
    throw ConfigError("budget " + std::to_string(options.budget) + " of the dense bytes at " +
                      std::to_string(options.budget_tokens) +
                      " tokens is less than every head compressed takes");
  return best;
}

std::string decode(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  std::string text;
  for (const int32_t id : ids) text += tokenizer.token_bytes(id, false);
  return text;
}

HeadTable measured(Calibration& c) {
  const CalibrationOptions& options = c.options;
  const std::vector<RetrievalPrompt> prompts = c.prompts.empty() ? make_prompts(c) : c.prompts;
  Model model = make_model(c);
  Probe probe(model, c.ops);
  AnswerCosts::Options asked;
  asked.compressed = {
      .sink_tokens = 4, .recent_tokens = options.window, .block_tokens = 64, .compensate = true};
  asked.question_tokens = options.question_tokens;
  asked.stop_ids = stop_ids(c);
  AnswerCosts costs(probe, prompts, asked, [&](int64_t done, int64_t total) {
    c.progress("reading prompts", done, total);
  });
  int32_t right = 0, known = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].expected.empty()) continue;
    ++known;
    const std::string answer = decode(c.tokenizer, costs.answers()[i].tokens);
    right += answer.find(prompts[i].expected) != std::string::npos;
  }
  if (known > 0)
    c.say("Everything kept, the model answers " + std::to_string(right) + " of " +
          std::to_string(known) + " questions right; its own answers count either way.");

  RankingState state;
  state.alone = c.checkpoint.get("alone");
  state.bound = c.checkpoint.get("bound");
  state.cost_after = c.checkpoint.get("cost_after");
  for (const double head : c.checkpoint.get("removed"))
    state.removed.push_back(static_cast<int32_t>(head));
  const int32_t num_heads = probe.num_heads();
  rank_heads(
      num_heads,
      [&](const std::vector<bool>& full) { return costs.cost(full); },
      state,
      [&](const RankingState& now) {
        c.checkpoint.set("alone", now.alone);
        c.checkpoint.set("bound", now.bound);
        c.checkpoint.set("cost_after", now.cost_after);
        c.checkpoint.set("removed", {now.removed.begin(), now.removed.end()});
        c.checkpoint.save();
        c.progress("compressing head by head",
                   static_cast<int64_t>(now.alone.size() + now.removed.size()),
                   2 * int64_t{num_heads});
        return true;
      });
  const HeadRanking ranking = finish_ranking(state);
  HeadTable table = new_table(c, "measured");
  table.ranking = ranking.order;
  const auto full = static_cast<size_t>(heads_within_budget(c, ranking.order));
  keep_full(table, std::span(ranking.order).first(full));
  table.scores["left_out_alone"] = ranking.alone;
  table.scores["left_out_in_turn"] = ranking.cost_of;
  note(table, "seed", static_cast<double>(options.seed));
  note(table, "prompts", static_cast<double>(prompts.size()));
  note(table, "answered_right", right);
  note(table, "min_tokens", options.min_tokens);
  note(table, "max_tokens", options.max_tokens);
  note(table, "window", options.window);
  note(table, "question_tokens", options.question_tokens);
  return table;
}

constexpr CalibrationMethod kMethods[] = {
    {"razor",
     "RazorAttention: attention to earlier copies of repeated random tokens; one forward pass",
     "induction",
     razor},
    {"measured",
     "what compressing each head costs the model's own answers to retrieval questions",
     "left_out_in_turn",
     measured},
    {"duo",
     "DuoAttention: gates between everything and a window, optimised by gradients",
     "gate",
     calibrate_duo},
    {"moa",
     "MoA: a span per head under a bound on density, from the gradients of attention",
     "hidden_by_narrowest",
     calibrate_moa},
};

}  // namespace

Model make_model(const Calibration& c) {
  return {c.files, c.ops, {kStepRows, kMaxLogitRows}, [&](int64_t done, int64_t total) {
            c.progress("loading weights", done, total);
          }};
}

std::vector<int32_t> stop_ids(const Calibration& c) {
  std::vector<int32_t> ids = c.tokenizer.eog_ids();
  ids.insert(ids.end(), c.files.eos_token_ids.begin(), c.files.eos_token_ids.end());
  for (int32_t id = 0; id < c.tokenizer.vocab_size(); ++id)
    if (c.tokenizer.token_bytes(id, false).starts_with('\n')) ids.push_back(id);
  return ids;
}

std::vector<RetrievalPrompt> make_prompts(const Calibration& c) {
  const CalibrationOptions& options = c.options;
  const int32_t most = std::min(options.max_tokens, c.files.spec.max_positions - 256);
  if (options.num_prompts < 1 || options.min_tokens < 256 || most < options.min_tokens)
    throw ConfigError(
        "prompts need num-prompts >= 1 and 256 <= min-tokens <= max-tokens within "
        "the model's positions, got " +
        std::to_string(options.num_prompts) + ", " + std::to_string(options.min_tokens) + " and " +
        std::to_string(most));
  const std::vector<std::string> tasks = retrieval_tasks();
  std::vector<RetrievalPrompt> prompts;
  const auto num_tasks = static_cast<int32_t>(tasks.size());
  const int32_t rounds = (options.num_prompts + num_tasks - 1) / num_tasks;
  for (int32_t i = 0; i < options.num_prompts; ++i) {
    const int32_t round = i / num_tasks;
    const int32_t length =
        rounds < 2 ? most : options.min_tokens + (most - options.min_tokens) * round / (rounds - 1);
    prompts.push_back(make_retrieval_prompt(c.tokenizer,
                                            tasks[static_cast<size_t>(i % num_tasks)],
                                            length,
                                            options.seed * 1'000'003 + static_cast<uint64_t>(i)));
  }
  return prompts;
}

std::span<const CalibrationMethod> calibration_methods() { return kMethods; }

const CalibrationMethod& find_calibration_method(std::string_view name) {
  std::string known;
  for (const CalibrationMethod& method : kMethods) {
    if (method.name == name) return method;
    known += (known.empty() ? "" : ", ") + std::string(method.name);
  }
  throw ConfigError("method must be one of " + known + ", got \"" + std::string(name) + "\"");
}

}  // namespace headwater
