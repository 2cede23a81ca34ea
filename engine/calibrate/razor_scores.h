// How much each KV head looks back at earlier occurrences of what it reads: RazorAttention
// (arXiv 2407.15891), section 3.2. A block of random tokens, repeated, has no meaning; attention
// over more than a block is a copy mechanism.
//
//   BOS  x0 x1 ... xM-1  x0 x1 ... xM-1  ...      row of token i (BOS not counted), i >= M, m >= 1
//   echo       mean over i of sum over m of A[i, i - mM]        the same token
//   induction  mean over i of sum over m of A[i, i - mM + 1]    what followed it
//
// A = exp(logit - log sum exp) on those two diagonals per repetition, so the cost beside one
// forward pass is a few products per row, and no matrix of attention exists. A KV head scores as
// the best of its query heads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/calibrate/head_grid.h"
#include "engine/calibrate/probe.h"
#include "engine/text/tokenizer.h"

namespace headwater {

struct RazorScores {
  HeadGrid echo, induction;
};

// Ids whose text is plain: valid, printable, no control tokens. What random probes are drawn from;
// a model's behaviour on tokens it never met says nothing.
std::vector<int32_t> ordinary_tokens(const Tokenizer& tokenizer);

// BOS (if bos >= 0), then `block` ids drawn from `ids`, `repeats` times over.
std::vector<int32_t> repeated_block(
    std::span<const int32_t> ids, int32_t bos, int32_t block, int32_t repeats, uint64_t seed);

// tokens: as repeated_block made them. Reads them once through the probe, whose model nobody else
// may be observing. K of all layers is held on the host meanwhile, in fp32.
RazorScores razor_scores(Probe& probe,
                         std::span<const int32_t> tokens,
                         int32_t block,
                         bool has_bos,
                         const std::function<void(int64_t done, int64_t total)>& progress = {});

// The published choice over all layers: the top fraction by induction and the top fraction by echo,
// both rounded up, ties to the lower head. Ranked so: those by induction, those by echo, the rest
// by induction.
struct RazorChoice {
  std::vector<int32_t> ranking;  // all heads, layer * num_kv_heads + kv_head
  int32_t num_full = 0;          // the first of them are the published choice
};
RazorChoice choose_razor(const RazorScores& scores, double induction_part, double echo_part);

}  // namespace headwater
