#include "engine/calibrate/gradient_methods.h"

#include <algorithm>
#include <map>

#include "engine/calibrate/duo.h"
#include "engine/calibrate/moa.h"
#include "engine/calibrate/probe.h"
#include "kernels/base/status.h"
#include "kernels/make_ops.h"

namespace headwater {
namespace {

constexpr int32_t kMaxAnswerTokens = 64;

void note(HeadTable& table, const std::string& name, double value) {
  table.calibration.emplace_back(name, value);
}

// Questions with the model's own answers behind them.
std::vector<CalibrationSample> answered(Calibration& c) {
  const std::vector<RetrievalPrompt> prompts = c.prompts.empty() ? make_prompts(c) : c.prompts;
  const std::vector<int32_t> stop = stop_ids(c);
  Model model = make_model(c);
  Probe probe(model, c.ops);
  const std::vector<kv::RetentionRule> everything(static_cast<size_t>(probe.num_heads()));
  std::vector<CalibrationSample> samples;
  for (size_t i = 0; i < prompts.size(); ++i) {
    CalibrationSample sample;
    sample.tokens = prompts[i].tokens;
    std::vector<int32_t> answer = prompts[i].answer;
    if (answer.empty()) {
      ProbePrompt read = probe.read(sample.tokens, kMaxAnswerTokens);
      answer = probe.greedy(read, everything, kMaxAnswerTokens, stop);
    }
    for (const int32_t token : answer) {
      sample.rows.push_back(static_cast<int32_t>(sample.tokens.size()) - 1);
      sample.tokens.push_back(token);
    }
    if (!answer.empty()) samples.push_back(std::move(sample));
    c.progress(
        "answering questions", static_cast<int64_t>(i) + 1, static_cast<int64_t>(prompts.size()));
  }
  if (samples.empty()) throw ConfigError("the model answers no question: nothing to go by");
  return samples;
}

std::vector<CalibrationSample> passkeys(const Calibration& c) {
  const CalibrationOptions& options = c.options;
  if (options.num_prompts < 1 || options.max_tokens < options.min_tokens ||
      options.max_tokens > c.files.spec.max_positions)
    throw ConfigError(
        "passkeys need num-prompts >= 1 and min-tokens <= max-tokens within the "
        "model's " +
        std::to_string(c.files.spec.max_positions) + " positions");
  std::vector<CalibrationSample> samples;
  for (int32_t i = 0; i < options.num_prompts; ++i) {
    PasskeyOptions passkey;
    passkey.length =
        options.min_tokens + static_cast<int32_t>(int64_t{options.max_tokens - options.min_tokens} *
                                                  i / std::max(1, options.num_prompts - 1));
    passkey.seed = options.seed * 1'000'003 + static_cast<uint64_t>(i);
    samples.push_back(make_passkeys(c.tokenizer, passkey));
  }
  // Neighbouring steps see different lengths.
  for (size_t i = 1; i < samples.size(); i += 2)
    std::swap(samples[i], samples[samples.size() - 1 - i / 2]);
  return samples;
}

// Three groups of about the same number by length, shortest first.
std::vector<std::vector<CalibrationSample>> by_length(std::vector<CalibrationSample> samples) {
  constexpr size_t kGroups = 3;
  std::ranges::stable_sort(
      samples, {}, [](const CalibrationSample& sample) { return sample.tokens.size(); });
  const size_t count = std::min(kGroups, samples.size());
  std::vector<std::vector<CalibrationSample>> groups(count);
  for (size_t i = 0; i < samples.size(); ++i)
    groups[i * count / samples.size()].push_back(std::move(samples[i]));
  return groups;
}

EffectProfile profile(Calibration& c,
                      GradientModel& model,
                      const std::vector<CalibrationSample>& samples) {
  const std::string name = "effects_" + std::to_string(samples.back().tokens.size());
  const auto importance =
      c.options.moa_group == "max" ? GroupImportance::kMax : GroupImportance::kSum;
  EffectProfile found;
  found.length = static_cast<int32_t>(samples.back().tokens.size());
  found.num_blocks =
      (found.length + MaskingEffects::kBlockTokens - 1) / MaskingEffects::kBlockTokens;
  found.num_heads =
      static_cast<int32_t>(model.spec().layers.size()) * model.spec().layers[0].heads.num_kv_heads;
  found.effects = c.checkpoint.get(name);
  const auto size = static_cast<size_t>(found.num_heads) * static_cast<size_t>(found.num_blocks) *
                    static_cast<size_t>(found.num_blocks);
  if (found.effects.size() == size) return found;
  found = profile_effects(
      model,
      samples,
      importance,
      c.options.moa_rows == "answers",
      [&](int64_t done, int64_t total) {
        c.progress("masking effects at " + std::to_string(found.length) + " tokens", done, total);
      });
  c.checkpoint.set(name, found.effects);
  c.checkpoint.save();
  return found;
}

void expect_one_of(const std::string& option,
                   const std::string& got,
                   const std::string& a,
                   const std::string& b) {
  if (got != a && got != b)
    throw ConfigError(option + " must be " + a + " or " + b + ", got \"" + got + "\"");
}

}  // namespace

HeadTable calibrate_duo(Calibration& c) {
  const CalibrationOptions& options = c.options;
  expect_one_of("duo-data", options.duo_data, "passkeys", "questions");
  if (options.duo_steps < 1) throw ConfigError("duo-steps must be at least 1");
  if (options.window < 1) throw ConfigError("window must be at least 1");
  const std::vector<CalibrationSample> samples =
      options.duo_data == "passkeys" ? passkeys(c) : answered(c);
  DuoOptions duo;
  duo.steps = options.duo_steps;
  duo.learning_rate = options.duo_rate;
  duo.regularization = options.duo_press;
  duo.recent = options.window;

  DuoGates gates;
  const std::vector<double> alpha = c.checkpoint.get("alpha");
  gates.alpha.assign(alpha.begin(), alpha.end());
  gates.pull = c.checkpoint.get("pull");
  gates.mean = c.checkpoint.get("mean");
  gates.square = c.checkpoint.get("square");
  gates.distortion = c.checkpoint.get("distortion");
  const auto ops = make_gradient_ops(c.ops.name(), c.pool);
  GradientModel model(c.files, *ops);
  optimize_gates(model, samples, duo, gates, [&](const DuoGates& now) {
    c.checkpoint.set("alpha", {now.alpha.begin(), now.alpha.end()});
    c.checkpoint.set("pull", now.pull);
    c.checkpoint.set("mean", now.mean);
    c.checkpoint.set("square", now.square);
    c.checkpoint.set("distortion", now.distortion);
    c.checkpoint.save();
    c.progress("optimising gates", static_cast<int64_t>(now.distortion.size()), duo.steps);
    return true;
  });
  const auto open = std::ranges::count_if(gates.alpha, [](float gate) { return gate >= 0.5f; });
  c.say(std::to_string(open) + " of " + std::to_string(gates.alpha.size()) +
        " gates stay open by half or more.");

  HeadTable table = duo_table(gates, head_table_model(c.files), options.heads);
  table.calibration.emplace_back("data", options.duo_data);
  note(table, "seed", static_cast<double>(options.seed));
  note(table, "texts", static_cast<double>(samples.size()));
  note(table, "min_tokens", options.min_tokens);
  note(table, "max_tokens", options.max_tokens);
  note(table, "steps", duo.steps);
  note(table, "learning_rate", duo.learning_rate);
  note(table, "regularization", duo.regularization);
  note(table, "sinks", duo.sinks);
  note(table, "recent", duo.recent);
  note(table, "last_distortion", gates.distortion.back());
  c.published = {{"full_attention_heads.tsv", duo_tsv(gates.alpha, table.model.num_kv_heads)},
                 {"config.json", duo_config(duo)}};
  return table;
}

HeadTable calibrate_moa(Calibration& c) {
  const CalibrationOptions& options = c.options;
  expect_one_of("moa-group", options.moa_group, "sum", "max");
  expect_one_of("moa-rows", options.moa_rows, "all", "answers");
  if (!(options.density > 0 && options.density <= 1))
    throw ConfigError("density must be above 0 and at most 1");
  if (options.moa_rules < 0 || options.moa_rules > 2)
    throw ConfigError("moa-rules must be 0 (any), 1 or 2, got " +
                      std::to_string(options.moa_rules));
  if (options.alpha_step < 64) throw ConfigError("alpha-step must be at least 64");
  const auto groups = by_length(answered(c));  // whose model has left the device again
  const auto ops = make_gradient_ops(c.ops.name(), c.pool);
  GradientModel model(c.files, *ops);
  std::vector<EffectProfile> profiles;
  std::vector<int32_t> lengths;
  for (const auto& group : groups) {
    profiles.push_back(profile(c, model, group));
    lengths.push_back(profiles.back().length);
  }
  const std::vector<SpanRule> rules =
      span_candidates(lengths.front(), lengths.back(), options.alpha_step);
  const HeadTableModel shape = head_table_model(c.files);
  const SpanChoices choices = span_choices(profiles, rules, lengths, shape.num_layers);
  const SpanSelection chosen = select_spans(choices, options.density, options.moa_rules);
  if (chosen.density > options.density)
    c.say("No choice is as sparse as asked: the sparsest holds " + std::to_string(chosen.density) +
          " of the context.");
  std::vector<SpanRule> spans;
  for (const int32_t rule : chosen.rules) spans.push_back(rules[static_cast<size_t>(rule)]);

  HeadTable table = moa_table(spans, shape);
  // What the narrowest span would hide of a head: how much it needs.
  const auto narrowest = std::ranges::min_element(choices.density) - choices.density.begin();
  std::vector<double>& need = table.scores["hidden_by_narrowest"];
  for (int32_t head = 0; head < static_cast<int32_t>(spans.size()); ++head)
    need.push_back(choices.cost_of(head, static_cast<int32_t>(narrowest)));
  for (const int32_t length : lengths)
    note(table, "profiled_tokens_" + std::to_string(length), length);
  note(table, "seed", static_cast<double>(options.seed));
  note(table, "density", chosen.density);
  note(table, "hidden_effect", chosen.cost / static_cast<double>(lengths.size()));
  note(table, "rules_per_layer", options.moa_rules);
  note(table, "alpha_step", options.alpha_step);
  table.calibration.emplace_back("group", options.moa_group);
  table.calibration.emplace_back("rows", options.moa_rows);
  c.published = {
      {"moa.json", moa_json(spans, shape.num_kv_heads, model.spec().layers[0].heads.num_heads)}};
  return table;
}

}  // namespace headwater
