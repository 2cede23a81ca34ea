#include "engine/model/arch/arch_checks.h"

#include <cmath>

namespace headwater::arch {

void check_head_dim(int64_t head_dim, const std::string& file) {
  check(head_dim >= kHeadDim.min && head_dim <= kHeadDim.max,
        file,
        "the head dimension is " + std::to_string(head_dim) + ", expected 2 to " +
            std::to_string(kHeadDim.max));
}

void check_scale(double value, const std::string& name, const std::string& file) {
  check(std::isfinite(value) && value > 1e-30 && value < 1e30,
        file,
        "key \"" + name + "\" is " + std::to_string(value) + ", expected a positive number");
}

void check_spec(const ModelSpec& spec, const std::string& file) {
  check(spec.rms_eps > 0, file, "the epsilon of the RMS norm is not positive");
  for (const LayerSpec& layer : spec.layers) {
    const HeadShape& heads = layer.heads;
    check(heads.num_heads % heads.num_kv_heads == 0,
          file,
          std::to_string(heads.num_heads) + " query heads cannot share " +
              std::to_string(heads.num_kv_heads) + " key/value heads; expected a multiple");
    check(heads.head_dim % 2 == 0,
          file,
          "the head dimension is " + std::to_string(heads.head_dim) + ", expected an even number");
  }
}

void check_rope(double base, const RopeScaling& scaling, const std::string& file) {
  check(base > 1, file, "the RoPE base is " + std::to_string(base) + ", expected more than 1");
  check(scaling.factor >= 1,
        file,
        "the RoPE scaling factor is " + std::to_string(scaling.factor) + ", expected at least 1");
  const bool needs_original = scaling.rule == RopeRule::kLlama3 || scaling.rule == RopeRule::kYarn;
  check(!needs_original || scaling.original_positions >= 1,
        file,
        "the RoPE scaling has no original context length, expected at least 1");
  check(scaling.rule != RopeRule::kLlama3 ||
            (scaling.low_freq_factor > 0 && scaling.low_freq_factor < scaling.high_freq_factor),
        file,
        "the RoPE scaling of type llama3 needs 0 < low_freq_factor < high_freq_factor");
  check(scaling.rule != RopeRule::kYarn ||
            (scaling.beta_slow > 0 && scaling.beta_slow <= scaling.beta_fast),
        file,
        "the RoPE scaling of type yarn needs 0 < beta_slow <= beta_fast");
  check(std::isfinite(scaling.magnitude) && scaling.magnitude > 0 && scaling.magnitude < 1e6,
        file,
        "the RoPE scaling's attention factor is " + std::to_string(scaling.magnitude) +
            ", expected a positive number");
}

}  // namespace headwater::arch
