// Any bytes as a GGUF file, read as a server and as inspect does: parse, then touch everything the
// index points to.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/model/arch/arch_table.h"
#include "engine/model/loaded_model.h"
#include "engine/model/tensor_set.h"
#include "engine/model/vocabulary_gguf.h"
#include "engine/model/weight_map.h"
#include "kernels/base/status.h"

namespace headwater {
namespace {

void touch(std::span<const std::byte> bytes, uint64_t& sum) {
  for (const std::byte byte : bytes) sum += static_cast<uint8_t>(byte);
}

// Each may refuse on its own.
template <typename Call>
void attempt(Call&& call) {
  try {
    call();
  } catch (const LoadError&) {
  }
}

void read_everything(const GgufFile& file) {
  volatile uint64_t result = 0;
  uint64_t sum = 0;
  for (const auto& [key, value] : file.metadata()) {
    touch(value.bytes, sum);
    attempt([&, &key = key] { file.integers(key); });
    attempt([&, &key = key] { file.numbers(key); });
    attempt([&, &key = key] { file.strings(key); });
    attempt([&, &key = key] { file.string(key); });
    attempt([&, &key = key] { file.number(key); });
    attempt([&, &key = key] { file.boolean(key); });
  }
  for (const GgufTensor& tensor : file.tensors()) touch(tensor.data, sum);
  result = sum;
  static_cast<void>(result);
}

void read_model(const GgufFile& file, Refusals& refusals) {
  attempt([&] { read_gguf_eos(file, read_gguf_vocabulary(file)); });
  attempt([&] {
    TensorSet tensors;
    tensors.add(file);
    const Arch& arch = find_gguf_arch(file.required_string("general.architecture"), file.name());
    ArchReading reading = read_gguf_arch(arch, file, tensors);
    LoadedModel model;
    model.spec = reading.spec;
    map_weights(tensors, arch.gguf_tensors, reading.weights, model, refusals);
  });
}

// What a server reads, and what inspect reads on behind the first refusal.
void read(std::span<const std::byte> bytes, Refusals refusals) {
  const GgufFile file = GgufFile::parse(bytes, "fuzz.gguf", refusals);
  read_everything(file);
  read_model(file, refusals);
}

}  // namespace
}  // namespace headwater

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  headwater::attempt([&] { headwater::read(bytes, headwater::Refusals::thrown()); });
  std::vector<std::string> refused;
  headwater::attempt([&] { headwater::read(bytes, headwater::Refusals::collected(refused)); });
  return 0;
}
