// `measured`: which heads matter by what compressing them costs the model's own answers. Scores of
// attention patterns miss heads that a copy needs and do not look like one (a table's note on
// needle-24m shows it); this asks the model.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/calibrate/probe.h"
#include "engine/calibrate/retrieval_prompts.h"

namespace headwater {

// What it costs to compress a set of heads: the divergence KL(dense || trial) of the answer's
// distribution, summed over its tokens, in nats, mean over prompts. Near it lies minus the log of
// the chance to give the same answer. 0: nothing changes.
class AnswerCosts {
 public:
  struct Options {
    kv::RetentionRule compressed;  // what a head keeps that is not full; far less than the prompts
    int32_t max_answer_tokens = 64;  // of the model's own answer
    int32_t question_tokens = 0;     // so many tokens at a prompt's end are rows under trial too,
                                     // as in a second question about the same text
    std::vector<int32_t> stop_ids;   // an answer ends before one
  };
  struct Answer {  // the model's own, everything kept
    std::string task;
    std::vector<int32_t> tokens;
  };

  // Not owned. Reads every prompt and keeps its K and V.
  AnswerCosts(Probe& probe,
              std::span<const RetrievalPrompt> prompts,
              const Options& options,
              const std::function<void(int64_t done, int64_t total)>& progress = {});

  // full: [heads]; the others are compressed.
  double cost(const std::vector<bool>& full);
  std::span<const Answer> answers() const { return answers_; }
  int64_t kv_bytes() const { return kv_bytes_; }

 private:
  struct Trial {
    ProbePrompt prompt;
    std::vector<int32_t> rows;  // the question's end, then the answer
    size_t first_counted = 0;   // rows before it are the question's
    std::vector<float> dense;   // log p behind each counted row, [rows, vocab]
  };
  Probe& probe_;
  Options options_;
  std::vector<Trial> trials_;
  std::vector<Answer> answers_;
  int64_t kv_bytes_ = 0;
};

// Backward elimination, one head at a time: of those still full, the one whose compression costs
// least beside what is compressed already goes next. So of two heads that do the same work one goes
// cheaply and the other then shows its worth, which leaving one out at a time never sees.
//
// Lazy: the more is compressed, the more a head costs (nearly always), so an old cost is a lower
// bound, and only the head that looks cheapest is tried again.
// Source: Minoux, Accelerated greedy algorithms for maximizing submodular set functions (1978).
struct HeadRanking {
  std::vector<int32_t> order;   // most important first: the last to be compressed
  std::vector<double> cost_of;  // [heads]: what everything compressed cost once this head went too
  std::vector<double> alone;    // [heads]: cost of compressing this head alone
};

// What has been found so far; saved and given back to resume.
struct RankingState {
  std::vector<double> alone;       // [heads], those known first
  std::vector<int32_t> removed;    // in order
  std::vector<double> cost_after;  // [removed]
  std::vector<double> bound;       // [heads] what going next would add, as last tried
  int64_t trials = 0;
};

// keep_going(state): after every step; false stops and leaves the state to be resumed.
// Heads are compressed until all are.
bool rank_heads(int32_t num_heads,
                const std::function<double(const std::vector<bool>& full)>& cost,
                RankingState& state,
                const std::function<bool(const RankingState&)>& keep_going);
HeadRanking finish_ranking(const RankingState& state);

}  // namespace headwater
