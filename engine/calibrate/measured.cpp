#include "engine/calibrate/measured.h"

#include <algorithm>
#include <cmath>

#include "engine/sample/softmax.h"
#include "kernels/base/check.h"

namespace headwater {
namespace {

void to_log_probabilities(std::span<float> logits) {
  const auto log_sum = static_cast<float>(log_sum_exp(logits));
  for (float& value : logits) value -= log_sum;
}

// KL(p || softmax(logits)), p as logs.
double divergence(std::span<const float> p, std::span<const float> logits) {
  const double log_sum = log_sum_exp(logits);
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i)
    sum += std::exp(double{p[i]}) * (p[i] - (logits[i] - log_sum));
  return std::max(0.0, sum);
}

std::vector<kv::RetentionRule> rules_of(const std::vector<bool>& full,
                                        const kv::RetentionRule& compressed) {
  std::vector<kv::RetentionRule> rules;
  for (const bool keeps : full) rules.push_back(keeps ? kv::RetentionRule{} : compressed);
  return rules;
}

}  // namespace

AnswerCosts::AnswerCosts(Probe& probe,
                         std::span<const RetrievalPrompt> prompts,
                         const Options& options,
                         const std::function<void(int64_t, int64_t)>& progress)
    : probe_(probe), options_(options) {
  const std::vector<bool> all_full(static_cast<size_t>(probe.num_heads()), true);
  const std::vector<kv::RetentionRule> dense = rules_of(all_full, options.compressed);
  const auto vocab = static_cast<size_t>(probe.vocab_size());
  for (const RetrievalPrompt& asked : prompts) {
    const std::span<const int32_t> tokens = asked.tokens;
    const size_t question =
        std::min(static_cast<size_t>(options.question_tokens), tokens.size() - 1);
    const auto longest =
        std::max(static_cast<size_t>(options.max_answer_tokens), asked.answer.size());
    Trial trial;
    trial.prompt = probe.read(tokens.first(tokens.size() - question),
                              static_cast<int32_t>(question + longest));
    const auto end = tokens.last(question);
    std::vector<int32_t> answer = asked.answer;
    if (answer.empty())
      answer = probe.greedy(trial.prompt, dense, options.max_answer_tokens, options.stop_ids, end);
    answers_.push_back({asked.task, answer});
    trial.rows.assign(end.begin(), end.end());
    trial.rows.insert(trial.rows.end(), answer.begin(), answer.end());
    // The row before the answer gives its first token; in faithful mode it is the prompt's.
    trial.first_counted = question > 0 ? question - 1 : 0;
    if (trial.rows.size() > trial.first_counted) {
      const std::vector<float> logits = probe.logits(trial.prompt, dense, trial.rows);
      trial.dense.assign(logits.begin() + static_cast<std::ptrdiff_t>(trial.first_counted * vocab),
                         logits.end());
      for (size_t row = 0; row < trial.dense.size(); row += vocab)
        to_log_probabilities(std::span(trial.dense).subspan(row, vocab));
      kv_bytes_ += trial.prompt.bytes();
      trials_.push_back(std::move(trial));
    }
    if (progress)
      progress(static_cast<int64_t>(answers_.size()), static_cast<int64_t>(prompts.size()));
  }
  HW_CHECK(!trials_.empty(), "prompts that the model answers, of", prompts.size());
}

double AnswerCosts::cost(const std::vector<bool>& full) {
  const std::vector<kv::RetentionRule> rules = rules_of(full, options_.compressed);
  const auto vocab = static_cast<size_t>(probe_.vocab_size());
  double total = 0;
  for (Trial& trial : trials_) {
    const std::vector<float> logits = probe_.logits(trial.prompt, rules, trial.rows);
    const auto counted = std::span(logits).subspan(trial.first_counted * vocab);
    for (size_t row = 0; row < counted.size(); row += vocab)
      total += divergence(std::span(trial.dense).subspan(row, vocab), counted.subspan(row, vocab));
  }
  return total / static_cast<double>(trials_.size());
}

bool rank_heads(int32_t num_heads,
                const std::function<double(const std::vector<bool>&)>& cost,
                RankingState& state,
                const std::function<bool(const RankingState&)>& keep_going) {
  const auto count = static_cast<size_t>(num_heads);
  std::vector<bool> full(count, true);
  for (const int32_t head : state.removed) full[static_cast<size_t>(head)] = false;
  // What compressing this head too would add.
  const auto added = [&](size_t head) {
    full[head] = false;
    const double result = cost(full);
    full[head] = true;
    ++state.trials;
    return result - (state.cost_after.empty() ? 0.0 : state.cost_after.back());
  };
  while (state.alone.size() < count) {
    state.alone.push_back(added(state.alone.size()));
    state.bound = state.alone;
    if (!keep_going(state)) return false;
  }
  while (state.removed.size() < count) {
    // The cheapest by what is known, tried again until it stays the cheapest.
    std::vector<bool> fresh(count, false);
    size_t next = count;
    while (true) {
      next = count;
      for (size_t head = 0; head < count; ++head)
        if (full[head] && (next == count || state.bound[head] < state.bound[next])) next = head;
      if (fresh[next] || state.removed.empty()) break;
      state.bound[next] = added(next);
      fresh[next] = true;
    }
    full[next] = false;
    const double before = state.cost_after.empty() ? 0.0 : state.cost_after.back();
    state.removed.push_back(static_cast<int32_t>(next));
    state.cost_after.push_back(before + state.bound[next]);
    if (!keep_going(state)) return false;
  }
  return true;
}

HeadRanking finish_ranking(const RankingState& state) {
  HeadRanking ranking;
  ranking.alone = state.alone;
  ranking.cost_of.resize(state.alone.size());
  for (size_t i = 0; i < state.removed.size(); ++i)
    ranking.cost_of[static_cast<size_t>(state.removed[i])] = state.cost_after[i];
  ranking.order.assign(state.removed.rbegin(), state.removed.rend());
  return ranking;
}

}  // namespace headwater
