#include "engine/model/arch/rope_keys.h"

#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "engine/io/quote.h"
#include "engine/model/arch/arch_checks.h"

namespace headwater::arch {
namespace {

[[noreturn]] void refuse_type(const std::string& file,
                              std::string_view type,
                              std::string_view supported) {
  throw LoadError(file + ": RoPE scaling of type " + quote(type) +
                  " is not supported; expected one of " + std::string(supported));
}

void check_divisors(const std::vector<float>& divisors, int32_t rotary_dim, const std::string& of) {
  check(std::ssize(divisors) == rotary_dim / 2,
        of,
        "has " + std::to_string(divisors.size()) + " elements, expected " +
            std::to_string(rotary_dim / 2) + " elements, one per rotated pair");
  for (const float divisor : divisors) {
    check(std::isfinite(divisor) && divisor > 0,
          of,
          "has an element that is not positive and finite");
  }
}

// LongRoPE (arXiv 2402.13753) scales cos and sin by how far the context was stretched.
double longrope_magnitude(double factor, double original_positions) {
  return factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(original_positions));
}

// ---- config.json

std::vector<float> config_divisors(const JsonObject& rope,
                                   std::string_view key,
                                   int32_t rotary_dim) {
  const std::vector<double> numbers = rope.numbers(key);
  const std::vector<float> divisors(numbers.begin(), numbers.end());
  check_divisors(divisors, rotary_dim, rope.name() + ": key " + quote(key));
  return divisors;
}

void config_longrope(const JsonObject& config,
                     const JsonObject& rope,
                     int32_t max_positions,
                     RopeReading& out) {
  constexpr std::string_view kOriginal = "original_max_position_embeddings";
  constexpr IntRange kSome{2, kPositions.max};
  const int64_t original = config.has(kOriginal) ? config.integer(kOriginal, kSome)
                                                 : rope.integer_or(kOriginal, max_positions, kSome);
  out.divisors = config_divisors(rope, "short_factor", out.rotary_dim);
  out.long_divisors = config_divisors(rope, "long_factor", out.rotary_dim);
  out.long_after = static_cast<int32_t>(original);
  const double stretched = static_cast<double>(max_positions) / static_cast<double>(original);
  out.scaling.magnitude = rope.number_or(
      "attention_factor",
      longrope_magnitude(rope.number_or("factor", stretched), static_cast<double>(original)));
}

void config_scaling(const JsonObject& config,
                    const JsonObject& rope,
                    int32_t max_positions,
                    RopeReading& out) {
  RopeScaling& scaling = out.scaling;
  const std::string type =
      rope.has("rope_type") ? rope.string("rope_type") : rope.string_or("type", "default");
  if (type == "default") return;
  // Phi-3 called it su, and once yarn.
  if (type == "longrope" || type == "su" || (type == "yarn" && rope.has("long_factor")))
    return config_longrope(config, rope, max_positions, out);
  if (type == "linear") {
    scaling.rule = RopeRule::kLinear;
  } else if (type == "llama3") {
    scaling.rule = RopeRule::kLlama3;
    scaling.low_freq_factor = rope.number("low_freq_factor");
    scaling.high_freq_factor = rope.number("high_freq_factor");
    scaling.original_positions =
        static_cast<double>(rope.integer("original_max_position_embeddings", kPositions));
  } else if (type == "yarn") {
    scaling.rule = RopeRule::kYarn;
    scaling.original_positions = static_cast<double>(
        rope.integer_or("original_max_position_embeddings", max_positions, kPositions));
    scaling.beta_fast = rope.number_or("beta_fast", 32.0);
    scaling.beta_slow = rope.number_or("beta_slow", 1.0);
    scaling.whole_pairs = rope.boolean_or("truncate", true);
  } else {
    refuse_type(rope.name(), type, "default, linear, llama3, yarn, longrope");
  }
  scaling.factor = rope.number("factor");
  if (scaling.rule == RopeRule::kYarn) {
    const bool deepseek = rope.has("mscale") && rope.has("mscale_all_dim");
    const double natural = deepseek
                               ? yarn_magnitude(scaling.factor, rope.number("mscale")) /
                                     yarn_magnitude(scaling.factor, rope.number("mscale_all_dim"))
                               : yarn_magnitude(scaling.factor);
    scaling.magnitude = rope.number_or("attention_factor", natural);
  }
}

// Newer files keep everything about RoPE in one object, older ones beside it.
std::optional<JsonObject> rope_object(const JsonObject& config, std::string_view kind) {
  const std::string_view key = config.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!config.has(key)) return std::nullopt;
  JsonObject rope = config.object(key);
  if (rope.has("full_attention")) return rope.object(kind);
  return rope;
}

// ---- GGUF

std::vector<float> gguf_divisors(const GgufKeys& keys, std::string_view name, int32_t rotary_dim) {
  const StoredTensor* tensor = keys.tensors().find(name);
  if (tensor == nullptr) return {};
  check(tensor->shape.size() == 1, describe(*tensor), "expected one dimension");
  check(tensor->shape[0] == rotary_dim / 2,
        describe(*tensor),
        "expected " + std::to_string(rotary_dim / 2) + " elements, one per rotated pair");
  std::vector<float> divisors = decode_tensor(*tensor);
  check_divisors(divisors, rotary_dim, describe(*tensor));
  return divisors;
}

double gguf_original_positions(const GgufKeys& keys, int32_t max_positions) {
  return static_cast<double>(
      keys.integer("rope.scaling.original_context_length", kPositions).value_or(max_positions));
}

// Files do not name this rule: they bring its tensors.
void gguf_longrope(const GgufKeys& keys, int32_t max_positions, RopeReading& out) {
  out.divisors = gguf_divisors(keys, "rope_factors_short.weight", out.rotary_dim);
  out.long_divisors = gguf_divisors(keys, "rope_factors_long.weight", out.rotary_dim);
  check(!out.divisors.empty() && !out.long_divisors.empty(),
        keys.file_name(),
        "RoPE scaling of type longrope needs the tensors \"rope_factors_long.weight\" and "
        "\"rope_factors_short.weight\"");
  const double original = gguf_original_positions(keys, max_positions);
  check(original >= 2, keys.file_name(), "the RoPE scaling has no original context length");
  out.long_after = static_cast<int32_t>(original);
  out.scaling = {};
  out.scaling.magnitude = keys.number_or("rope.scaling.attn_factor",
                                         longrope_magnitude(max_positions / original, original));
}

void gguf_scaling(const GgufKeys& keys, int32_t max_positions, RopeReading& out) {
  RopeScaling& scaling = out.scaling;
  const bool long_tensors = keys.tensors().find("rope_factors_long.weight") != nullptr ||
                            keys.tensors().find("rope_factors_short.weight") != nullptr;
  const std::string type(keys.file().string(keys.key("rope.scaling.type")).value_or("linear"));
  if (type == "longrope" || long_tensors) return gguf_longrope(keys, max_positions, out);
  scaling.factor = keys.number_or("rope.scaling.factor", keys.number_or("rope.scale_linear", 1.0));
  scaling.magnitude = keys.number_or("rope.scaling.attn_factor", 1.0);
  if (type == "none") {
    scaling.rule = RopeRule::kNone;
  } else if (type == "linear") {
    scaling.rule = RopeRule::kLinear;
  } else if (type == "yarn") {
    scaling.rule = RopeRule::kYarn;
    scaling.original_positions = gguf_original_positions(keys, max_positions);
    scaling.extrapolation = keys.number_or("rope.scaling.yarn_ext_factor", 1.0);
    scaling.beta_fast = keys.number_or("rope.scaling.yarn_beta_fast", 32.0);
    scaling.beta_slow = keys.number_or("rope.scaling.yarn_beta_slow", 1.0);
    scaling.magnitude *=
        keys.number_or("rope.scaling.yarn_attn_factor", 1.0) * yarn_magnitude(scaling.factor);
  } else {
    refuse_type(keys.file_name(), type, "none, linear, yarn, longrope");
  }
  if (scaling.factor == 0) scaling.factor = 1;  // writers that mean "unscaled"
}

}  // namespace

RopeReading config_rope(const JsonObject& config,
                        std::string_view kind,
                        double default_base,
                        int32_t head_dim,
                        int32_t max_positions,
                        bool partial) {
  RopeReading out;
  out.base = config.number_or("rope_theta", default_base);
  double part = config.number_or("partial_rotary_factor", 1.0);
  const std::optional<JsonObject> rope = rope_object(config, kind);
  if (rope) {
    out.base = rope->number_or("rope_theta", out.base);
    part = rope->number_or("partial_rotary_factor", part);
  }
  check(part == 1.0 || (partial && part > 0 && part < 1),
        config.name(),
        "key \"partial_rotary_factor\" is not 1, and partial rotation is not supported" +
            std::string(partial ? " beyond 0 to 1" : " here"));
  out.rotary_dim = static_cast<int32_t>(head_dim * part);
  check(out.rotary_dim >= 2 && out.rotary_dim % 2 == 0,
        config.name(),
        "key \"partial_rotary_factor\" rotates " + std::to_string(out.rotary_dim) + " of " +
            std::to_string(head_dim) + " dimensions, expected an even number");
  if (rope) config_scaling(config, *rope, max_positions, out);
  check_rope(out.base, out.scaling, config.name());
  return out;
}

RopeReading gguf_rope(const GgufKeys& keys, int32_t head_dim, int32_t max_positions) {
  RopeReading out;
  out.rotary_dim =
      static_cast<int32_t>(keys.integer("rope.dimension_count", {2, head_dim}).value_or(head_dim));
  check(out.rotary_dim % 2 == 0,
        keys.file_name(),
        "metadata key " + quote(keys.key("rope.dimension_count")) + " is " +
            std::to_string(out.rotary_dim) + ", expected an even number");
  out.base = keys.number_or("rope.freq_base", 10000.0);
  out.divisors = gguf_divisors(keys, "rope_freqs.weight", out.rotary_dim);
  gguf_scaling(keys, max_positions, out);
  check_rope(out.base, out.scaling, keys.file_name());
  return out;
}

int32_t add_rope(ModelSpec& spec, RopePairing pairing, const RopeReading& reading) {
  const auto make = [&](const std::vector<float>& divisors) {
    return make_rope(pairing, reading.rotary_dim, reading.base, reading.scaling, divisors);
  };
  const bool is_long = !reading.long_divisors.empty();
  spec.ropes.push_back(make(reading.divisors));
  if (is_long) spec.long_after = reading.long_after;
  if (!is_long && spec.long_ropes.empty()) return static_cast<int32_t>(spec.ropes.size()) - 1;
  // Those that do not depend on the length are in both lists.
  while (spec.long_ropes.size() + 1 < spec.ropes.size())
    spec.long_ropes.push_back(spec.ropes[spec.long_ropes.size()]);
  spec.long_ropes.push_back(is_long ? make(reading.long_divisors) : spec.ropes.back());
  return static_cast<int32_t>(spec.ropes.size()) - 1;
}

}  // namespace headwater::arch
