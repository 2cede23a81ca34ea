#include "server/cli/inspect_report.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string_view>
#include <system_error>
#include <utility>

#include "engine/attention/policy_table.h"
#include "engine/io/gguf.h"
#include "engine/io/json_object.h"
#include "engine/io/mapped_file.h"
#include "engine/io/refusals.h"
#include "engine/model/gguf_parts.h"
#include "engine/model/hf_model.h"
#include "engine/model/loaded_model.h"
#include "engine/model/tensor_set.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/status.h"
#include "server/cli/inspect_heads.h"

namespace headwater::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int64_t kMaxShownElements = 8;
constexpr size_t kMaxShownText = 200;

std::string shortened(std::string_view text) {
  if (text.size() <= kMaxShownText) return std::string(text);
  return std::string(text.substr(0, kMaxShownText)) + "... (" + std::to_string(text.size()) +
         " bytes)";
}

// ---- what the files say, whether or not they can be served

Json scalar(const GgufFile& file, std::string_view key, const GgufValue& value) {
  switch (value.type) {
    case GgufType::kString:
      return shortened(*file.string(key));
    case GgufType::kBool:
      return *file.boolean(key);
    case GgufType::kF32:
    case GgufType::kF64:
      return *file.number(key);
    default:
      return *file.integer(key, {INT64_MIN, INT64_MAX});
  }
}

Json gguf_value(const GgufFile& file, std::string_view key, const GgufValue& value) {
  const bool shown = !value.is_array || value.count <= kMaxShownElements;
  if (shown && !value.is_array) {
    try {
      return scalar(file, key, value);
    } catch (const LoadError&) {
      return "not a finite number";
    }
  }
  if (shown && value.type == GgufType::kString) return *file.strings(key);
  return std::to_string(value.count) + " x " + std::string(gguf_type_name(value.type));
}

void describe_files(const std::vector<MappedFile>& files, Json& report) {
  uint64_t total = 0;
  Json list = Json::array();
  for (const MappedFile& file : files) {
    total += file.bytes().size();
    list.push_back({{"path", file.path()}, {"bytes", file.bytes().size()}});
  }
  report["file_bytes"] = total;
  report["files"] = std::move(list);
}

void describe_tensors(const TensorSet& tensors, Json& report) {
  struct Total {
    int64_t count = 0;
    int64_t bytes = 0;
    bool supported = false;
  };
  std::map<std::string, Total> totals;
  Json list = Json::array();
  for (const auto& [name, tensor] : tensors.tensors()) {
    list.push_back({{"name", name},
                    {"type", tensor.type.empty() ? "unknown" : tensor.type},
                    {"shape", tensor.shape},
                    {"bytes", tensor.num_bytes}});
    Total& total = totals[tensor.type.empty() ? "unknown" : tensor.type];
    ++total.count;
    total.bytes += tensor.num_bytes;
    total.supported = tensor.format.has_value();
  }
  Json types = Json::array();
  for (const auto& [type, total] : totals) {
    types.push_back({{"type", type},
                     {"tensors", total.count},
                     {"bytes", total.bytes},
                     {"supported", total.supported}});
  }
  report["types"] = std::move(types);
  report["tensors"] = std::move(list);
}

void describe_gguf(const std::string& path, Json& report, Refusals& refusals) {
  std::vector<MappedFile> mapped;
  const GgufParts parts = open_gguf(path, mapped, refusals);
  const GgufFile& file = parts.files.front();
  report["container"] = "GGUF version " + std::to_string(file.version());
  describe_files(mapped, report);
  Json& metadata = report["metadata"] = Json::object();
  for (const auto& [key, value] : file.metadata()) {
    metadata[std::string(key)] = gguf_value(file, key, value);
  }
  report["has_tokenizer"] = file.find("tokenizer.ggml.tokens") != nullptr;
  report["has_chat_template"] = file.find("tokenizer.chat_template") != nullptr;
  describe_tensors(parts.tensors, report);
}

void describe_folder(const std::string& path, Json& report, Refusals& refusals) {
  report["container"] = "Hugging Face folder";
  report["has_tokenizer"] = file_exists(fs::path(path) / "tokenizer.json");
  const std::string config_path = (fs::path(path) / "config.json").string();
  if (file_exists(config_path)) {
    refusals.attempt([&] {
      const MappedFile config(config_path);
      report["metadata"] = Json::parse(parse_json(config.text(), config_path).dump());
    });
  }
  std::vector<MappedFile> files;
  const TensorSet tensors = open_hf_tensors(path, files, refusals);
  describe_files(files, report);
  describe_tensors(tensors, report);
}

// ---- what the engine would make of them

int64_t kv_bytes_per_token(const ModelSpec& spec) {
  constexpr int64_t kF16Bytes = 2;
  int64_t bytes = 0;
  for (const LayerSpec& layer : spec.layers) {
    bytes += 2 * kF16Bytes * layer.heads.num_kv_heads * layer.heads.head_dim;
  }
  return bytes;
}

// Bytes that a sequence of so many tokens holds, dense, in pages of 16 tokens: a layer that sees a
// window gives back what lies behind it.
Json kv_bytes_held(const ModelSpec& spec) {
  constexpr int32_t kPageTokens = 16;
  const HeadShape& heads = spec.layers.front().heads;
  std::vector<kv::RetentionRule> rules;
  for (const LayerSpec& layer : spec.layers) {
    rules.insert(rules.end(),
                 static_cast<size_t>(heads.num_kv_heads),
                 kv::RetentionRule{.layer_window = layer.window});
  }
  const kv::KvGeometry geometry(static_cast<int32_t>(spec.layers.size()),
                                heads.num_kv_heads,
                                rules,
                                {DType::kF16, heads.head_dim, kPageTokens, 0});
  Json held = Json::object();
  for (const int64_t tokens : {2048, 8192, 32768, 131072}) {
    if (tokens > spec.max_positions) break;
    held[std::to_string(tokens)] = geometry.bytes_for(tokens, true);
  }
  return held;
}

void describe_model(const LoadedModel& model, Json& report) {
  const ModelSpec& spec = model.spec;
  const HeadShape& heads = spec.layers.front().heads;
  report["model"] = {
      {"name", model.name},
      {"architecture", spec.architecture},
      {"parameters", model.num_parameters},
      {"weight_bytes", model.weight_bytes},
      {"weight_format", model.weight_format},
      {"layers", spec.layers.size()},
      {"hidden_dim", spec.hidden_dim},
      {"query_heads", heads.num_heads},
      {"kv_heads", heads.num_kv_heads},
      {"head_dim", heads.head_dim},
      {"ffn_dim", spec.layers.front().ffn_dim},
      {"vocab_size", spec.vocab_size},
      {"tied_embedding", spec.tied_embedding},
      {"trained_context_tokens", spec.max_positions},
      {"kv_bytes_per_token_f16", kv_bytes_per_token(spec)},
      {"kv_bytes_held_f16", kv_bytes_held(spec)},
  };
  int64_t window_layers = 0;
  for (const LayerSpec& layer : spec.layers) {
    if (layer.window == 0) continue;
    ++window_layers;
    report["model"]["window_tokens"] = layer.window;
  }
  if (window_layers > 0) report["model"]["window_layers"] = window_layers;
}

// Text of several scripts: what comes back from its ids is what went in, but for a leading space
// that some vocabularies put there.
constexpr std::string_view kProbeText = "Hello, w\u00f6rld! 12345\n\n  \u65e5\u672c \U0001F642\tx";

void check_tokenizer(const Tokenizer& tokenizer,
                     const std::vector<int32_t>& eos,
                     InspectReport& report) {
  const std::vector<int32_t> ids = tokenizer.encode(kProbeText, false, false);
  std::string text;
  for (const int32_t id : ids) text += tokenizer.token_bytes(id, false);
  const bool same = text == kProbeText || text == " " + std::string(kProbeText);
  Json& json = report.fields["tokenizer"];
  json["tokens"] = tokenizer.vocab_size();
  json["bos"] = tokenizer.bos();
  json["adds_bos"] = tokenizer.adds_bos();
  json["eos_token_ids"] = eos;
  json["ends_generation"] = tokenizer.eog_ids();
  json["probe"] = kProbeText;
  json["probe_ids"] = ids;
  json["round_trip"] = same;
  if (!same) {
    report.warnings.emplace_back(
        "the tokenizer does not give back the probe text: its vocabulary or its normalizer "
        "changes some text");
  }
  if (tokenizer.eog_ids().empty() && eos.empty()) {
    report.warnings.emplace_back(
        "the files name no token that ends a generation: replies end at max_tokens only");
  }
}

std::string token_text(const Tokenizer* tokenizer, int32_t id) {
  return tokenizer == nullptr || id < 0 ? "" : tokenizer->token_bytes(id, true);
}

void check_template(const ChatTemplate& chat, const Tokenizer* tokenizer, InspectReport& report) {
  Json variables = {{"bos_token", token_text(tokenizer, tokenizer ? tokenizer->bos() : -1)},
                    {"eos_token", token_text(tokenizer, tokenizer ? tokenizer->eos() : -1)},
                    {"add_generation_prompt", true}};
  const auto says = [](const char* role, const char* content) {
    return Json{{"role", role}, {"content", content}};
  };
  Json& json = report.fields["chat_template"];
  json["bytes"] = chat.source().size();
  variables["messages"] = {says("user", "Hi"), says("assistant", "Hello."), says("user", "Bye")};
  const Result<std::string> rendered = chat.render(variables);
  json["renders"] = rendered.ok();
  if (rendered.ok()) {
    json["probe"] = rendered.value();
  } else {
    report.warnings.push_back(
        "the chat template does not render a conversation of user, "
        "assistant, user: " +
        rendered.status().message);
  }
  variables["messages"] = {says("system", "Be brief."), says("user", "Hi")};
  const Result<std::string> with_system = chat.render(variables);
  json["takes_system_message"] =
      with_system.ok() && with_system.value().find("Be brief.") != std::string::npos;
}

void check_text(LoadedModel& model, InspectReport& report, Refusals& refusals) {
  std::unique_ptr<Tokenizer> tokenizer;
  if (!model.vocabulary.tokens.empty()) {
    report.fields["tokenizer"] = {{"kind", model.vocabulary.model}, {"pre", model.vocabulary.pre}};
    refusals.attempt([&] {
      tokenizer = make_tokenizer(std::move(model.vocabulary));
      check_tokenizer(*tokenizer, model.eos_token_ids, report);
    });
  } else if (model.spec.layers.empty()) {
    return;  // nothing was read that could have text
  }
  report.fields["has_chat_template"] = !model.chat_template.empty();
  if (model.chat_template.empty()) {
    report.warnings.emplace_back("the files have no chat template: text completions only");
    return;
  }
  refusals.attempt([&] {
    check_template(ChatTemplate(model.chat_template, model.path), tokenizer.get(), report);
  });
}

}  // namespace

InspectReport make_inspect_report(const std::string& path, const EngineConfig* attention) {
  InspectReport report;
  report.fields["path"] = path;
  Refusals refusals = Refusals::collected(report.refused);
  std::error_code error;
  const bool is_folder = fs::is_directory(path, error);
  if (!is_folder && !file_exists(path)) {
    refusals.attempt([&] { load_model(path); });
    return report;
  }
  refusals.attempt([&] {
    is_folder ? describe_folder(path, report.fields, refusals)
              : describe_gguf(path, report.fields, refusals);
  });
  std::unique_ptr<LoadedModel> model;
  refusals.attempt([&] { model = load_model(path, refusals); });
  if (model == nullptr) return report;
  if (!model->spec.layers.empty()) describe_model(*model, report.fields);
  if (attention != nullptr && report.refused.empty()) {
    try {
      report.fields["attention"] = describe_heads(plan_attention(*attention, *model), *model);
    } catch (const ConfigError& issue) {
      refusals.add(issue.what());
    } catch (const LoadError& issue) {
      refusals.add(issue.what());
    }
  }
  check_text(*model, report, refusals);
  return report;
}

}  // namespace headwater::cli
