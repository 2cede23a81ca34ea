// Bounds of what files may ask for, and the checks that both containers share.
#pragma once

#include <cstdint>
#include <string>

#include "engine/io/int_range.h"
#include "engine/model/model_spec.h"
#include "engine/model/rope_scaling.h"
#include "kernels/base/status.h"

namespace headwater::arch {

constexpr IntRange kLayers{1, 1024};
constexpr IntRange kHidden{1, 1 << 18};
constexpr IntRange kHeads{1, 1 << 12};
constexpr IntRange kHeadDim{2, 1024};
constexpr IntRange kFfn{1, 1 << 22};
constexpr IntRange kVocab{1, 1 << 24};
constexpr IntRange kPositions{1, 1 << 30};
constexpr IntRange kWindow{0, 1 << 30};

inline void check(bool ok, const std::string& file, const std::string& message) {
  if (!ok) throw LoadError(file + ": " + message);
}

// What is promised of every spec, whatever it was read from.
void check_spec(const ModelSpec& spec, const std::string& file);
void check_head_dim(int64_t head_dim, const std::string& file);
void check_rope(double base, const RopeScaling& scaling, const std::string& file);
// A multiplier or a cap: finite and positive, its inverse too.
void check_scale(double value, const std::string& name, const std::string& file);

// Layers for which sliding(layer) holds see `window` positions. One that the trained context never
// reaches is none.
template <typename Sliding>
void set_windows(ModelSpec& spec, int64_t window, Sliding&& sliding) {
  if (window >= spec.max_positions) return;
  for (size_t i = 0; i < spec.layers.size(); ++i)
    if (sliding(static_cast<int32_t>(i))) spec.layers[i].window = static_cast<int32_t>(window);
}

}  // namespace headwater::arch
