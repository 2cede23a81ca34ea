// A tokenizer.json: loads, or is refused; what loads encodes any text, and every id has its bytes.
#include <cstdint>
#include <string>
#include <string_view>

#include "engine/text/tokenizer_json.h"
#include "kernels/base/status.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer =
        headwater::make_tokenizer(headwater::load_tokenizer_json(json, "", "fuzz"));
    for (const std::string_view text :
         {std::string_view("It's  12 \xC3\xA9\xFF\n\n <s>x e\xCC\x81 \xEF\xAC\x81"),
          json.substr(0, 256)}) {
      for (const int32_t id : tokenizer->encode(text, true, true)) {
        if (id < 0 || id >= tokenizer->vocab_size()) __builtin_trap();
        tokenizer->token_bytes(id, true);
      }
    }
  } catch (const headwater::LoadError&) {
  }
  return 0;
}
