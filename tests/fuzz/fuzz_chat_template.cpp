// A chat template: parses, or is refused; renders to text, or fails with a status.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/text/chat_template.h"
#include "engine/text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const nlohmann::ordered_json kVariables = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": " a "},
                 {"role": "user", "content": [{"type": "text", "text": "é"}]},
                 {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "1", "function": {"name": "f", "arguments": {"x": [1, 2.5, true]}}}]}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "n": 3, "l": [3, 1, 2]})");
  try {
    const headwater::ChatTemplate chat(std::string(reinterpret_cast<const char*>(data), size),
                                       "fuzz");
    const auto result = chat.render(kVariables, 0);
    if (result.ok() && headwater::utf8::sanitize(result.value()) != result.value()) {
      __builtin_trap();
    }
  } catch (const headwater::LoadError&) {
  }
  return 0;
}
