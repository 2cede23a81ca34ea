#include "engine/model/hf_model.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/io/json_object.h"
#include "engine/io/mapped_file.h"
#include "engine/io/quote.h"
#include "engine/io/safetensors.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/text_files.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

namespace fs = std::filesystem;

JsonObject read_object(const fs::path& path) {
  const MappedFile file(path.string());
  return JsonObject::parse(file.text(), path.string());
}

// nullopt: the folder has no such file.
std::optional<JsonObject> read_optional_object(const fs::path& path) {
  if (!file_exists(path)) return std::nullopt;
  return read_object(path);
}

constexpr size_t kMaxShards = 4096;

void add_sharded(const fs::path& folder,
                 const fs::path& index_path,
                 TensorSet& tensors,
                 std::vector<MappedFile>& files,
                 Refusals& refusals) {
  const MappedFile index_file(index_path.string());
  const std::map<std::string, std::string> index =
      parse_safetensors_index(index_file.text(), index_path.string());
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index) shards.insert(shard);
  if (shards.size() > kMaxShards) {
    throw LoadError(index_path.string() + ": names " + std::to_string(shards.size()) +
                    " files, expected at most " + std::to_string(kMaxShards));
  }
  std::string missing;
  std::set<std::string> unread;
  for (const std::string& shard : shards) {
    if (file_exists(folder / shard)) continue;
    missing += (missing.empty() ? "" : ", ") + quote(shard);
    unread.insert(shard);
  }
  if (!missing.empty()) {
    refusals.add(index_path.string() + ": names " + std::to_string(shards.size()) +
                 " files; not in the folder: " + missing);
  }
  for (const std::string& shard : shards) {
    if (unread.contains(shard)) continue;
    const bool read = refusals.attempt([&] {
      files.emplace_back((folder / shard).string());
      tensors.add(SafetensorsFile::parse(files.back().bytes(), files.back().path(), refusals));
    });
    if (!read) unread.insert(shard);
  }
  for (const auto& [tensor, shard] : index) {
    const StoredTensor* stored = tensors.find(tensor);
    if (unread.contains(shard) ||
        (stored != nullptr && stored->file == (folder / shard).string())) {
      continue;
    }
    throw LoadError(index_path.string() + ": tensor " + quote(tensor) + " is not in file " +
                    quote(shard) + ", expected it there");
  }
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

void read_vocabulary(const fs::path& folder, LoadedModel& model) {
  model.vocabulary = read_hf_vocabulary(folder.string());
  const int32_t rows = model.spec.vocab_size;  // 0: the architecture was refused
  if (rows > 0 && std::ssize(model.vocabulary.tokens) > rows) {
    throw LoadError(model.vocabulary.source + ": has " +
                    std::to_string(model.vocabulary.tokens.size()) +
                    " tokens, expected at most the " + std::to_string(rows) +
                    " of \"vocab_size\" in config.json");
  }
}

}  // namespace

TensorSet open_hf_tensors(const std::string& folder_path,
                          std::vector<MappedFile>& files,
                          Refusals& refusals) {
  const fs::path folder(folder_path);
  const fs::path index = folder / "model.safetensors.index.json";
  const fs::path single = folder / "model.safetensors";
  TensorSet tensors;
  if (file_exists(index)) {
    refusals.attempt([&] { add_sharded(folder, index, tensors, files, refusals); });
  } else if (file_exists(single)) {
    files.emplace_back(single.string());
    tensors.add(SafetensorsFile::parse(files.back().bytes(), single.string(), refusals));
  } else {
    throw LoadError(folder_path +
                    ": has no weights; expected model.safetensors or model.safetensors.index.json");
  }
  return tensors;
}

std::unique_ptr<LoadedModel> load_hf_model(const std::string& folder_path, Refusals& refusals) {
  const fs::path folder(folder_path);
  auto model = std::make_unique<LoadedModel>();
  model->path = folder_path;
  model->name = fs::canonical(folder).filename().string();
  refusals.attempt([&] {
    const fs::path config_path = folder / "config.json";
    if (!file_exists(config_path)) {
      throw LoadError(folder_path + ": has no config.json; expected a Hugging Face model folder");
    }
    const JsonObject config = read_object(config_path);
    TensorSet tensors;
    const bool has_tensors =
        refusals.attempt([&] { tensors = open_hf_tensors(folder_path, model->files, refusals); });
    refusals.attempt([&] {
      const Arch& arch = find_hf_arch(config.string("model_type"), config.name());
      ArchReading reading = read_config_arch(arch, config);
      model->spec = std::move(reading.spec);
      if (has_tensors) {
        for (const auto& [from, to] : arch.hf_renames) tensors.rename(from, to);
        map_weights(tensors, arch.hf_tensors, reading.weights, *model, refusals);
      }
    });
    refusals.attempt([&] { read_vocabulary(folder, *model); });
    refusals.attempt([&] { model->chat_template = read_hf_chat_template(folder_path); });
    refusals.attempt([&] {
      const int32_t rows = model->spec.vocab_size;  // 0: the architecture was refused
      model->eos_token_ids = read_eos(
          folder, config, model->vocabulary, rows > 0 ? rows : std::numeric_limits<int32_t>::max());
    });
  });
  return model;
}

}  // namespace headwater
