#include <catch2/catch.hpp>
#include <thread>

#include "engine/text/chat_template.h"
#include "tests/engine/text/text_data.h"
#include "tests/support/skip.h"

using headwater::ChatTemplate;
using headwater::LoadError;
using Json = nlohmann::ordered_json;

namespace {

// The text, or null where the template or one of its values is refused: as jinja2 would.
Json render(const std::string& source, const Json& variables, int64_t now = 0) {
  try {
    auto result = ChatTemplate(source, "test").render(variables, now);
    if (result.ok()) return std::move(result).value();
    UNSCOPED_INFO(result.status().message);
  } catch (const LoadError& error) {
    UNSCOPED_INFO(error.what());
  }
  return nullptr;
}

std::string error_of(const std::string& source) {
  const auto result = ChatTemplate(source, "test").render(Json::object());
  return result.ok() ? "no error" : result.status().message;
}

std::string load_error_of(const std::string& source) {
  try {
    ChatTemplate(source, "model.gguf");
  } catch (const LoadError& error) {
    return error.what();
  }
  return "no error";
}

Json with_tokens(Json variables, const std::string& bos, const std::string& eos) {
  variables["bos_token"] = bos;
  variables["eos_token"] = eos;
  return variables;
}

}  // namespace

TEST_CASE("ChatTemplate: the language, byte for byte as jinja2", "[text][unit]") {
  const Json golden = headwater::test::golden("chat.json");
  for (const Json& item : golden["language"]) {
    const std::string source = item["source"];
    INFO(source);
    CHECK(render(source, golden["variables"], golden["now"]) == item["text"]);
  }
}

TEST_CASE("ChatTemplate: the two models' templates, byte for byte as jinja2", "[text][unit]") {
  const Json golden = headwater::test::golden("chat.json");
  for (const auto& [model, item] : golden["templates"].items()) {
    for (const auto& [name, variables] : golden["conversations"].items()) {
      INFO(model << ": " << name);
      CHECK(render(item["source"], with_tokens(variables, item["bos"], item["eos"])) ==
            item["texts"][name]);
    }
  }
}

TEST_CASE("ChatTemplate: published templates as jinja2", "[text][golden]") {
  const auto folder = headwater::test::shared_folder() / "data" / "templates";
  const auto expected_file =
      headwater::test::from_env("HEADWATER_TEMPLATE_GOLDENS", "templates.json");
  const auto expected = headwater::test::read_text(expected_file);
  if (!expected) {
    headwater::testing::skip(
        "set HEADWATER_TEMPLATE_GOLDENS to what make_text_goldens.py --templates wrote");
    return;
  }
  const Json golden = headwater::test::golden("chat.json");
  const Json all = Json::parse(*expected);
  for (const auto& [file, texts] : all.items()) {
    const std::string source = headwater::test::read_text(folder / file).value();
    for (const auto& [name, text] : texts.items()) {
      INFO(file << ": " << name);
      CHECK(render(source,
                   with_tokens(golden["conversations"][name], "<s>", "</s>"),
                   golden["now"]) == text);
    }
  }
}

TEST_CASE("ChatTemplate: errors say where and what", "[text][unit]") {
  CHECK(error_of("a\n{{ raise_exception('roles must alternate') }}") ==
        "chat template: line 2: roles must alternate");
  CHECK(error_of("{{ messages[0].x }}").find("'messages' is undefined") != std::string::npos);
  CHECK(load_error_of("a\n\n{% if x %}") ==
        "model.gguf: chat template line 3: expected {% endif %}, got the end");
  CHECK(load_error_of("{% include 'x' %}").find("{% include %} is not supported") !=
        std::string::npos);
  CHECK(load_error_of("{{ 1e999 }}").find("no number in range") != std::string::npos);
  CHECK(load_error_of("{{ 1.0e-999 }}").find("no number in range") != std::string::npos);
  CHECK(load_error_of("{{ 99999999999999999999 }}").find("64 bits") != std::string::npos);
  CHECK(load_error_of("{{ x").find("expected \"}}\"") != std::string::npos);
}

TEST_CASE("ChatTemplate: hostile templates end with an error", "[text][unit]") {
  const auto repeat = [](const std::string& s, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) out += s;
    return out;
  };
  CHECK(
      load_error_of("{{ " + repeat("(", 10000) + "1" + repeat(")", 10000) + "}}").find("nested") !=
      std::string::npos);
  CHECK(load_error_of("{{ " + repeat("-", 10000) + "1 }}").find("nested") != std::string::npos);
  CHECK(load_error_of("{{ a" + repeat("+ a", 10000) + " }}").find("in a row") != std::string::npos);
  CHECK(load_error_of(repeat("{% if a %}", 10000)).find("nested") != std::string::npos);
  CHECK(load_error_of(std::string(2 << 20, 'x')).find("expected at most") != std::string::npos);

  CHECK(error_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").find("too deeply") !=
        std::string::npos);
  const std::string over = "went over its limit";
  CHECK(
      error_of("{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}")
          .find(over) != std::string::npos);
  CHECK(error_of("{{ 'x' * 100000000000 }}").find(over) != std::string::npos);
  CHECK(error_of("{{ [1] * 9000000000000000000 }}").find(over) != std::string::npos);
  CHECK(error_of("{% set n = namespace(s='x') %}{% for i in range(99) %}"
                 "{% set n.s = n.s ~ n.s %}{% endfor %}")
            .find(over) != std::string::npos);
  CHECK(error_of("{% set n = namespace(l=[]) %}{% for i in range(5000) %}"
                 "{% set n.l = [n.l] %}{% endfor %}{{ n.l }}")
            .find("nested deeper") != std::string::npos);
  CHECK(error_of("{% set n = namespace() %}{% set n.n = n %}{{ n }}").find("nested deeper") !=
        std::string::npos);
  // Small in memory, endless to walk.
  const std::string doubled =
      "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
      "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}";
  for (const char* use : {"{{ n.x }}", "{{ n.x == n.y }}", "{{ n.x < n.y }}", "{{ n.x|tojson }}"}) {
    INFO(use);
    CHECK(error_of(doubled + use).find(over) != std::string::npos);
  }
  CHECK(error_of("{{ 9223372036854775807 + 1 }}").find("out of range") != std::string::npos);
}

TEST_CASE("ChatTemplate: one template renders from several threads", "[text][unit]") {
  const ChatTemplate chat("{% for m in messages %}{{ m.c|upper }}{% endfor %}", "test");
  std::vector<std::thread> threads;
  std::vector<std::string> out(4);
  for (size_t t = 0; t < out.size(); ++t) {
    threads.emplace_back([&, t] {
      const Json variables = {{"messages", Json::array({{{"c", std::string(100, 'a' + t)}}})}};
      for (int i = 0; i < 200; ++i) out[t] = chat.render(variables).value();
    });
  }
  for (auto& thread : threads) thread.join();
  for (size_t t = 0; t < out.size(); ++t) CHECK(out[t] == std::string(100, 'A' + t));
}
