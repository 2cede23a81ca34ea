// Questions whose answers lie far back: what the `measured` ranking asks a model, made for any
// tokenizer from a seed. One needle, one among many, several in order, a key-value table, copies of
// a record, and a run of tokens that comes again.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace headwater {

struct RetrievalPrompt {
  std::string task;
  std::vector<int32_t> tokens;  // with BOS where the tokenizer adds one
  std::vector<int32_t> answer;  // forced as the answer; empty: the model's own is taken
  std::string expected;         // of the model's own answer; empty: unknown
};

// Names of the tasks, in the order in which they take turns.
std::vector<std::string> retrieval_tasks();

// One prompt of about num_tokens (never more). The same arguments give the same prompt.
RetrievalPrompt make_retrieval_prompt(const Tokenizer& tokenizer,
                                      std::string_view task,
                                      int32_t num_tokens,
                                      uint64_t seed);

}  // namespace headwater
