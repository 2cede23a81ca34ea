// DuoAttention: a gate per KV head between all tokens and a window, optimised so that the model's
// last hidden states at the answers move least while the gates are pressed towards 0. Heads whose
// gate stays up need the whole context. Source: arXiv 2410.10819, section 2.3 and appendix.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/attention/head_table.h"
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

// What has been found after distortion.size() steps; saved and given back to resume.
struct DuoGates {
  // [num_layers, num_kv_heads]
  std::vector<float> alpha;  // 0 = a window does, 1 = needs everything
  std::vector<double> pull;  // how much opening the gate lowers the distortion, mean of all steps
  std::vector<double> mean, square;  // Adam's moments of the gradient
  std::vector<double> distortion;    // of each step: mean squared change of the hidden states

  // layer * num_kv_heads + kv_head, most important first: by gate, equal gates by pull.
  std::vector<int32_t> ranking() const;
};

// Fraction of the learning rate at a step: up over the first fifth, down to a tenth over the last.
double duo_schedule(int32_t step, int32_t steps);

// Goes round the samples, one per step, until all steps are done or keep_going(gates) says false.
// What the model itself computes for a sample is kept: one hidden state per answer token.
void optimize_gates(GradientModel& model,
                    std::span<const CalibrationSample> samples,
                    const DuoOptions& options,
                    DuoGates& gates,
                    const std::function<bool(const DuoGates&)>& keep_going = {});

// The first ceil(full * heads) of the ranking keep everything.
HeadTable duo_table(const DuoGates& gates, const HeadTableModel& model, double full);

// The published artefact: full_attention_heads.tsv and config.json.
std::string duo_tsv(const std::vector<float>& alpha, int32_t num_kv_heads);
std::string duo_config(const DuoOptions& options);

}  // namespace headwater
