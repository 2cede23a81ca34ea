#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "engine/io/json_object.h"
#include "engine/io/safetensors.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/load_error.h"
#include "tests/support/safetensors_writer.h"

namespace headwater {
namespace {

using Catch::Contains;
using testing::le_bytes;
using testing::load_error;
using testing::safetensors_bytes;

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string refusal(const std::string& bytes) {
  return load_error([&] { SafetensorsFile::parse(as_bytes(bytes), "m.safetensors"); });
}

TEST_CASE("safetensors: reads tensors and metadata", "[engine][unit]") {
  testing::SafetensorsWriter writer;
  writer.add_tensor("a", "F32", {2, 3}, std::string(24, '\1'));
  writer.add_tensor("b", "BF16", {}, "\2\3");
  writer.add_tensor("empty", "F16", {0, 5}, "");
  const std::string bytes = writer.bytes();
  const SafetensorsFile file = SafetensorsFile::parse(as_bytes(bytes), "m.safetensors");
  REQUIRE(file.tensors().size() == 3);
  const SafetensorsTensor* a = file.find("a");
  REQUIRE(a != nullptr);
  CHECK(a->dtype == "F32");
  CHECK(a->shape == std::vector<int64_t>{2, 3});
  CHECK(a->data.size() == 24);
  const SafetensorsTensor* b = file.find("b");
  REQUIRE(b != nullptr);
  CHECK(b->shape.empty());
  CHECK(std::memcmp(b->data.data(), "\2\3", 2) == 0);
  CHECK(file.find("c") == nullptr);

  const std::string with_metadata = safetensors_bytes(R"({"__metadata__":{"format":"pt"}}  )", "");
  CHECK(SafetensorsFile::parse(as_bytes(with_metadata), "m").metadata() ==
        std::map<std::string, std::string>{{"format", "pt"}});
}

struct Hostile {
  const char* what;
  std::string bytes;
  const char* expected;
};

std::string entry(const char* name, const char* dtype, const char* shape, const char* offsets) {
  return std::string("\"") + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape +
         R"(,"data_offsets":)" + offsets + "}";
}

std::string one(const std::string& entries, size_t data_bytes = 4) {
  return safetensors_bytes("{" + entries + "}", std::string(data_bytes, '\0'));
}

TEST_CASE("safetensors: hostile files are refused with the reason", "[engine][unit]") {
  const std::string deep = R"({"a":)" + std::string(1000, '[') + std::string(1000, ']') + "}";
  const std::vector<Hostile> cases = {
      {"empty", "", "has 0 bytes, expected at least 8"},
      {"7 bytes", "1234567", "has 7 bytes"},
      {"2^63 bytes of header", le_bytes(1ull << 63) + "{}", "header length is 9223372036854775808"},
      {"header beyond the file", le_bytes<uint64_t>(10) + "{}", "8 bytes are missing"},
      {"not an object", safetensors_bytes("[1]", ""), "does not begin with '{'"},
      {"empty header", safetensors_bytes("", ""), "does not begin with '{'"},
      {"not JSON", safetensors_bytes("{\"a\":", ""), "not valid JSON"},
      {"deep", safetensors_bytes(deep, ""), "nested deeper than 4"},
      {"bad UTF-8", safetensors_bytes("{\"\xff\":1}", ""), "not valid JSON"},
      {"number beyond double", safetensors_bytes(R"({"a":1e999})", ""), "not valid JSON"},
      {"name twice",
       one(entry("a", "F32", "[1]", "[0,4]") + "," + entry("a", "F32", "[1]", "[0,4]")),
       "key \"a\" appears twice"},
      {"not an entry", one(R"("a":3)"), "\"a\" is not an object"},
      {"no dtype", one(R"("a":{"shape":[1],"data_offsets":[0,4]})"), "\"a\" has no \"dtype\""},
      {"no shape", one(R"("a":{"dtype":"F32","data_offsets":[0,4]})"), "\"a\" has no \"shape\""},
      {"no offsets", one(R"("a":{"dtype":"F32","shape":[1]})"), "\"a\" has no \"data_offsets\""},
      {"unknown dtype", one(entry("a", "F31", "[1]", "[0,4]")), "dtype \"F31\""},
      {"negative size", one(entry("a", "F32", "[-1]", "[0,4]")), "\"shape\" has an element"},
      {"fraction", one(entry("a", "F32", "[1.5]", "[0,4]")), "\"shape\" has an element"},
      {"size 2^64 - 1",
       one(entry("a", "F32", "[18446744073709551615]", "[0,4]")),
       "\"shape\" has an element"},
      {"2^80 elements",
       one(entry("a", "F32", "[1099511627776,1099511627776]", "[0,4]")),
       "more bits than"},
      {"nine dimensions",
       one(entry("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]")),
       "has 9 dimensions"},
      {"one offset", one(entry("a", "F32", "[1]", "[0]")), "not a pair"},
      {"end before begin", one(entry("a", "F32", "[1]", "[4,0]")), "not a pair"},
      {"wrong size", one(entry("a", "F32", "[2]", "[0,4]")), "occupies 4 bytes, expected 8"},
      {"half a byte", one(entry("a", "F4", "[1]", "[0,1]"), 1), "occupies 1 bytes"},
      {"overlap",
       one(entry("a", "F32", "[1]", "[0,4]") + "," + entry("b", "F32", "[1]", "[2,6]"), 6),
       "\"b\" begins at data byte 2, expected 4"},
      {"hole",
       one(entry("a", "F32", "[1]", "[0,4]") + "," + entry("b", "F32", "[1]", "[6,10]"), 10),
       "begins at data byte 6, expected 4"},
      {"beyond the file", one(entry("a", "F32", "[3]", "[0,12]")), "8 bytes are missing"},
      {"bytes left over",
       one(entry("a", "F32", "[1]", "[0,4]"), 9),
       "5 bytes follow the last tensor"},
      {"metadata not text", one(R"("__metadata__":{"a":1})", 0), "key \"a\" is not a string"},
  };
  for (const Hostile& hostile : cases) {
    INFO(hostile.what);
    const std::string message = refusal(hostile.bytes);
    CHECK_THAT(message, Contains(hostile.expected));
    CHECK_THAT(message, Catch::StartsWith("m.safetensors: "));
  }
}

TEST_CASE("safetensors: every truncation is refused", "[engine][unit]") {
  testing::SafetensorsWriter writer;
  writer.add_tensor("a", "F32", {2}, "12345678");
  const std::string whole = writer.bytes();
  REQUIRE(refusal(whole).empty());
  for (size_t size = 0; size < whole.size(); ++size) {
    INFO("first " << size << " bytes");
    const auto cut = std::make_unique<std::byte[]>(size);
    std::memcpy(cut.get(), whole.data(), size);
    CHECK(!load_error([&] { SafetensorsFile::parse({cut.get(), size}, "m"); }).empty());
  }
}

TEST_CASE("safetensors: the index names plain files of the folder", "[engine][unit]") {
  const auto index = parse_safetensors_index(
      R"({"metadata":{"total_size":8},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})",
      "i");
  CHECK(index.at("b") == "m-2.safetensors");
  for (const char* file : {"../m", "/etc/passwd", "a\\\\b", "", ".", "..", "a\\u0000b"}) {
    INFO(file);
    const std::string text = std::string(R"({"weight_map":{"a":")") + file + "\"}}";
    CHECK_THAT(load_error([&] { parse_safetensors_index(text, "i"); }),
               Contains("expected a plain file name"));
  }
  CHECK_THAT(load_error([] { parse_safetensors_index("{}", "i"); }),
             Contains("\"weight_map\" is missing"));
  CHECK_THAT(load_error([] { parse_safetensors_index(R"({"weight_map":{"a":1}})", "i"); }),
             Contains("no file name"));
}

TEST_CASE("json_object: bounds and typed access", "[engine][unit]") {
  const JsonObject object = JsonObject::parse(
      R"({"i":5,"f":0.5,"b":true,"s":"x","n":null,"l":[1,2],"o":{"i":-1}})", "c.json");
  CHECK(object.integer("i") == 5);
  CHECK(object.number("f") == 0.5);
  CHECK(object.number("i") == 5);
  CHECK(object.boolean("b"));
  CHECK(object.string("s") == "x");
  CHECK(object.integers("l") == std::vector<int64_t>{1, 2});
  CHECK(object.integers("i") == std::vector<int64_t>{5});
  CHECK_FALSE(object.has("n"));
  CHECK(object.integer_or("n", 9) == 9);
  CHECK(object.integer_or("absent", 9) == 9);
  CHECK(load_error([&] { object.integer("absent"); }) ==
        "c.json: key \"absent\" is missing, expected an integer from 0 to 2147483647");
  CHECK_THAT(load_error([&] { object.integer("f"); }), Contains("key \"f\" is 0.5"));
  CHECK_THAT(load_error([&] { object.integer_or("s", 1); }), Contains("key \"s\" is \"x\""));
  CHECK_THAT(load_error([&] { object.object("o").integer("i"); }),
             Contains("c.json: o: key \"i\" is -1"));
  CHECK_THAT(load_error([&] { JsonObject::parse("[]", "c.json"); }),
             Contains("expected a JSON object"));

  const JsonLimits limits{64, 3, 8};
  CHECK_NOTHROW(parse_json("[[[1]]]", "c", limits));
  CHECK_THAT(load_error([&] { parse_json("[[[[1]]]]", "c", limits); }),
             Contains("nested deeper than 3"));
  CHECK_THAT(load_error([&] { parse_json("[1,2,3,4,5,6,7,8]", "c", limits); }),
             Contains("more than 8 values"));
  CHECK_THAT(load_error([&] { parse_json(std::string(65, ' '), "c", limits); }),
             Contains("has 65 bytes"));
}

}  // namespace
}  // namespace headwater
