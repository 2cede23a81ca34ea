// Attention of GradientOps on the CPU, contracts in gradient_ops.h, by strips of kEffectBlockTokens
// query rows against all keys before them. One thread calls; the pool works.
#pragma once

#include <vector>

#include "kernels/gradient/gemm.h"
#include "kernels/gradient/gradient_ops.h"

namespace headwater::gradient {

struct Strip {  // of one thread
  std::vector<float> scores, d_scores, window, d_window;
  GemmScratch gemm;
};

void attention(const GradientAttention& args,
               Matrix out,
               ThreadPool& pool,
               std::vector<Strip>& strips);
void attention_backward(const GradientAttention& args,
                        Matrix d_out,
                        Matrix d_qkv,
                        const AttentionFindings& findings,
                        ThreadPool& pool,
                        std::vector<Strip>& strips);

}  // namespace headwater::gradient
