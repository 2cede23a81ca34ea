#include "engine/model/hf_model.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/io/json_object.h"
#include "engine/io/quote.h"
#include "engine/io/safetensors.h"
#include "engine/model/arch/arch_table.h"
#include "engine/text/tokenizer_json.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

namespace fs = std::filesystem;

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

JsonObject read_object(const fs::path& path) {
  const MappedFile file(path.string());
  return JsonObject::parse(text_of(file), path.string());
}

// nullopt: the folder has no such file.
std::optional<JsonObject> read_optional_object(const fs::path& path) {
  if (!fs::exists(path)) return std::nullopt;
  return read_object(path);
}

void add_sharded(const fs::path& folder,
                 const fs::path& index_path,
                 TensorSet& tensors,
                 std::vector<MappedFile>& files) {
  const MappedFile index_file(index_path.string());
  const std::map<std::string, std::string> index =
      parse_safetensors_index(text_of(index_file), index_path.string());
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index) shards.insert(shard);
  for (const std::string& shard : shards) {
    files.emplace_back((folder / shard).string());
    tensors.add(SafetensorsFile::parse(files.back().bytes(), files.back().path()));
  }
  for (const auto& [tensor, shard] : index) {
    const StoredTensor* stored = tensors.find(tensor);
    if (stored == nullptr || stored->file != (folder / shard).string()) {
      throw LoadError(index_path.string() + ": tensor " + quote(tensor) + " is not in file " +
                      quote(shard) + ", expected it there");
    }
  }
}

Vocabulary read_vocabulary(const fs::path& folder) {
  const fs::path path = folder / "tokenizer.json";
  if (!fs::exists(path)) {
    throw LoadError(folder.string() + ": has no tokenizer; expected tokenizer.json");
  }
  const MappedFile tokenizer(path.string());
  const fs::path config_path = folder / "tokenizer_config.json";
  if (!fs::exists(config_path)) return load_tokenizer_json(text_of(tokenizer), "", path.string());
  const MappedFile config(config_path.string());
  return load_tokenizer_json(text_of(tokenizer), text_of(config), path.string());
}

// A text, or a list of named texts of which "default" is taken.
std::string config_template(const JsonObject& config) {
  if (!config.is_list("chat_template")) return config.string_or("chat_template", "");
  for (const JsonObject& entry : config.objects("chat_template")) {
    if (entry.string("name") == "default") return entry.string("template");
  }
  throw LoadError(config.name() + ": \"chat_template\" has no entry named \"default\"");
}

std::string read_chat_template(const fs::path& folder) {
  constexpr int64_t kMaxBytes = 1 << 20;
  const fs::path file_path = folder / "chat_template.jinja";
  std::string text;
  if (fs::exists(file_path)) {
    text = text_of(MappedFile(file_path.string()));
  } else if (const auto config = read_optional_object(folder / "tokenizer_config.json")) {
    text = config_template(*config);
  }
  if (std::ssize(text) > kMaxBytes) {
    throw LoadError(folder.string() + ": the chat template has " + std::to_string(text.size()) +
                    " bytes, expected at most " + std::to_string(kMaxBytes));
  }
  return text;
}

// The union over the two files; either may hold one id or a list.
std::vector<int32_t> read_eos(const fs::path& folder,
                              const JsonObject& config,
                              const Vocabulary& vocabulary,
                              int32_t vocab_size) {
  std::vector<int32_t> ids;
  const auto add = [&ids](int64_t id) {
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) {
      ids.push_back(static_cast<int32_t>(id));
    }
  };
  const auto add_key = [&](const JsonObject& object) {
    if (!object.has("eos_token_id")) return;
    for (const int64_t id : object.integers("eos_token_id", {-1, vocab_size - 1})) add(id);
  };
  if (const auto generation = read_optional_object(folder / "generation_config.json")) {
    add_key(*generation);
  }
  add_key(config);
  add(vocabulary.eos);
  return ids;
}

}  // namespace

TensorSet open_hf_tensors(const std::string& folder_path, std::vector<MappedFile>& files) {
  const fs::path folder(folder_path);
  const fs::path index = folder / "model.safetensors.index.json";
  const fs::path single = folder / "model.safetensors";
  TensorSet tensors;
  if (fs::exists(index)) {
    add_sharded(folder, index, tensors, files);
  } else if (fs::exists(single)) {
    files.emplace_back(single.string());
    tensors.add(SafetensorsFile::parse(files.back().bytes(), single.string()));
  } else {
    throw LoadError(folder_path +
                    ": has no weights; expected model.safetensors or model.safetensors.index.json");
  }
  return tensors;
}

std::unique_ptr<LoadedModel> load_hf_model(const std::string& folder_path) {
  const fs::path folder(folder_path);
  auto model = std::make_unique<LoadedModel>();
  model->path = folder_path;
  const fs::path config_path = folder / "config.json";
  if (!fs::exists(config_path)) {
    throw LoadError(folder_path + ": has no config.json; expected a Hugging Face model folder");
  }
  const JsonObject config = read_object(config_path);
  const Arch& arch = find_hf_arch(config.string("model_type"), config.name());
  ArchReading reading = arch.from_config(config);
  model->spec = std::move(reading.spec);

  const TensorSet tensors = open_hf_tensors(folder_path, model->files);
  map_weights(tensors, arch.hf_tensors, reading.attention_bias, *model);

  model->name = fs::canonical(folder).filename().string();
  model->vocabulary = read_vocabulary(folder);
  if (std::ssize(model->vocabulary.tokens) > model->spec.vocab_size) {
    throw LoadError(model->vocabulary.source + ": has " +
                    std::to_string(model->vocabulary.tokens.size()) +
                    " tokens, expected at most the " + std::to_string(model->spec.vocab_size) +
                    " of \"vocab_size\" in config.json");
  }
  model->chat_template = read_chat_template(folder);
  model->eos_token_ids = read_eos(folder, config, model->vocabulary, model->spec.vocab_size);
  return model;
}

}  // namespace headwater
