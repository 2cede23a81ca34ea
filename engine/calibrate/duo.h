// DuoAttention: a gate per KV head between all tokens and a window, optimised so that the model's
// last hidden states at the answers move least while the gates are pressed towards 0. Heads whose
// gate stays up need the whole context. Source: arXiv 2410.10819, section 2.3 and appendix.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/calibrate/gradients.h"
#include "engine/calibrate/passkeys.h"

namespace headwater {

struct DuoOptions {
  int32_t steps = 120;  // the paper: 2000, one sample each
  double learning_rate = 0.02;
  double regularization = 0.05;  // of the mean gate
  int32_t sinks = 64;            // the window of a closed gate, as deployed
  int32_t recent = 256;
};

struct DuoGates {
  // [num_layers, num_kv_heads]
  std::vector<float> alpha;  // 0 = a window does, 1 = needs everything
  std::vector<double> pull;  // how much opening the gate lowers the distortion, mean of all steps
  std::vector<double> distortion;  // [steps] mean squared change of the hidden states

  // layer * num_kv_heads + kv_head, most important first: by gate, equal gates by pull.
  std::vector<int32_t> ranking() const;
};

// Fraction of the learning rate at a step: up over the first fifth, down to a tenth over the last.
double duo_schedule(int32_t step, int32_t steps);

// Goes round the samples, one per step. What the model itself computes for a sample is kept, which
// is one row of hidden states per answer token.
DuoGates optimize_gates(
    GradientModel& model,
    std::span<const CalibrationSample> samples,
    const DuoOptions& options,
    const std::function<void(int32_t step, int32_t steps, double distortion)>& progress = {});

// The published artefact: full_attention_heads.tsv and config.json.
std::string duo_tsv(const std::vector<float>& alpha, int32_t num_kv_heads);
std::string duo_config(const DuoOptions& options);

}  // namespace headwater
