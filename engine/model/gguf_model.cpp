#include "engine/model/gguf_model.h"

#include <filesystem>
#include <string_view>
#include <utility>

#include "engine/io/quote.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/gguf_parts.h"
#include "engine/model/vocabulary_gguf.h"
#include "engine/model/weight_map.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

const GgufFile& metadata_of(const GgufParts& parts) { return parts.files.front(); }

void read_architecture(const GgufParts& parts, LoadedModel& model, Refusals& refusals) {
  const GgufFile& file = metadata_of(parts);
  const std::string_view type = file.string("general.type").value_or("model");
  if (type != "model") {
    throw LoadError(file.name() + ": metadata key \"general.type\" is " + quote(type) +
                    ", expected \"model\"");
  }
  const bool has_tensors = !parts.tensors.tensors().empty();
  if (!has_tensors) refusals.add(file.name() + ": has no tensors: it is a vocabulary, not a model");
  const Arch& arch = find_gguf_arch(file.required_string("general.architecture"), file.name());
  if (!has_tensors) return;
  ArchReading reading = read_gguf_arch(arch, file, parts.tensors);
  model.spec = std::move(reading.spec);
  map_weights(parts.tensors, arch.gguf_tensors, reading.weights, model, refusals);
}

void read_vocabulary(const GgufFile& file, LoadedModel& model) {
  model.vocabulary = read_gguf_vocabulary(file);
  const int32_t rows = model.spec.vocab_size;  // 0: the architecture was refused
  if (rows > 0 && std::ssize(model.vocabulary.tokens) > rows) {
    throw LoadError(
        file.name() + ": the vocabulary has " + std::to_string(model.vocabulary.tokens.size()) +
        " tokens, expected at most the " + std::to_string(rows) + " rows of the embedding");
  }
  model.eos_token_ids = read_gguf_eos(file, model.vocabulary);
}

}  // namespace

std::unique_ptr<LoadedModel> load_gguf_model(const std::string& path, Refusals& refusals) {
  auto model = std::make_unique<LoadedModel>();
  model->path = path;
  refusals.attempt([&] {
    const GgufParts parts = open_gguf(path, model->files, refusals);
    const GgufFile& file = metadata_of(parts);
    if (!file.has_metadata()) return;
    refusals.attempt([&] { read_architecture(parts, *model, refusals); });
    refusals.attempt([&] { read_vocabulary(file, *model); });
    refusals.attempt([&] {
      const std::string stem = std::filesystem::path(path).stem().string();
      model->name = file.string("general.name").value_or(stem);
      model->chat_template = file.string("tokenizer.chat_template").value_or("");
    });
  });
  return model;
}

}  // namespace headwater
