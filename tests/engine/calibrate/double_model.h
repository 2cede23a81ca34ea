// DoubleModel: the layers in double, as the formulas say, for finite differences: the oracle of
// GradientModel. Slow; for models of a few thousand weights.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/calibrate/gradients.h"
#include "engine/model/loaded_model.h"

namespace headwater::testing {

// Moves one row of attention weights by `amount` times the change that masking entry `column` and
// renormalising the rest would make.
struct MaskStep {
  size_t layer = 0;
  int32_t head = 0, row = 0, column = 0;
  double amount = 0;
};

class DoubleModel {
 public:
  explicit DoubleModel(const LoadedModel& files) : files_(files) {}

  std::vector<double> embed(std::span<const int32_t> tokens) const;  // [rows, hidden]
  // embedded: [rows, hidden] -> the last hidden states after the output norm, [rows, hidden]
  std::vector<double> hidden(std::vector<double> embedded,
                             const HeadGates* gates,
                             const std::optional<MaskStep>& mask = {}) const;

 private:
  std::vector<double> linear(const WeightView& weight, const std::vector<double>& x) const;
  void add_bias(const WeightView& bias, std::vector<double>& x) const;
  std::vector<double> norm(const WeightView& weight, const std::vector<double>& x) const;
  void rotate(const LayerSpec& layer, int32_t num_heads, std::vector<double>& x) const;
  std::vector<double> attention(size_t layer,
                                const std::vector<double>& q,
                                const std::vector<double>& k,
                                const std::vector<double>& v,
                                const HeadGates* gates,
                                const std::optional<MaskStep>& mask) const;

  const LoadedModel& files_;
};

}  // namespace headwater::testing
