#include <array>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/gguf.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/load_error.h"
#include "tests/support/tiny_model.h"

namespace headwater {
namespace {

using Catch::Contains;
using testing::gguf_string;
using testing::GgufWriter;
using testing::le_bytes;
using testing::load_error;

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string refusal(const std::string& bytes) {
  return load_error([&] { GgufFile::parse(as_bytes(bytes), "m.gguf"); });
}

constexpr int32_t kF32 = 0;
constexpr int32_t kQ8_0 = 8;

GgufWriter small_file() {
  GgufWriter file;
  file.add_string("general.architecture", "test");
  file.add_u32("count", 7);
  file.add_f32("scale", 0.5f);
  file.add_bool("flag", true);
  file.add_strings("names", std::vector<std::string>{"a", "", "ccc"});
  file.add_i32s("numbers", std::vector<int32_t>{3, -4});
  file.add_tensor("first", std::array<int64_t, 2>{3, 2}, kF32, std::string(24, '\1'));
  file.add_tensor("second", std::array<int64_t, 1>{32}, kQ8_0, std::string(34, '\2'));
  return file;
}

TEST_CASE("gguf: reads metadata and tensors of versions 2 and 3", "[engine][unit]") {
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter writer = small_file();
    writer.set_version(version);
    const std::string bytes = writer.bytes();
    const GgufFile file = GgufFile::parse(as_bytes(bytes), "m.gguf");
    CHECK(file.version() == version);
    CHECK(file.metadata().size() == 6);
    CHECK(file.metadata()[1].first == "count");
    CHECK(file.string("general.architecture") == "test");
    CHECK(file.integer("count") == 7);
    CHECK(file.number("scale") == 0.5);
    CHECK(file.boolean("flag") == true);
    CHECK(file.strings("names") == std::vector<std::string_view>{"a", "", "ccc"});
    CHECK(file.integers("numbers", {-10, 10}) == std::vector<int64_t>{3, -4});
    CHECK(file.integers("count") == std::vector<int64_t>{7});
    CHECK_FALSE(file.integer("absent").has_value());

    const GgufTensor* first = file.find_tensor("first");
    REQUIRE(first != nullptr);
    CHECK(first->type->name == "F32");
    CHECK(first->num_dims == 2);
    CHECK(first->ne == std::array<int64_t, 4>{3, 2, 1, 1});
    CHECK(first->data.size() == 24);
    const GgufTensor* second = file.find_tensor("second");
    REQUIRE(second != nullptr);
    CHECK(second->data.size() == 34);
    CHECK(second->data[0] == std::byte{2});
    CHECK((second->data.data() - as_bytes(bytes).data()) % 32 == 0);
    CHECK(file.find_tensor("third") == nullptr);
  }
}

TEST_CASE("gguf: places tensors by general.alignment", "[engine][unit]") {
  GgufWriter writer;
  writer.set_alignment(256);
  writer.add_tensor("a", std::array<int64_t, 1>{1}, kF32, "abcd");
  writer.add_tensor("b", std::array<int64_t, 1>{1}, kF32, "efgh");
  const std::string bytes = writer.bytes();
  const GgufFile file = GgufFile::parse(as_bytes(bytes), "m.gguf");
  CHECK(file.alignment() == 256);
  CHECK(file.find_tensor("b")->data.data() - file.find_tensor("a")->data.data() == 256);
  CHECK(std::memcmp(file.find_tensor("b")->data.data(), "efgh", 4) == 0);
}

TEST_CASE("gguf: any integer type that fits is an integer", "[engine][unit]") {
  GgufWriter writer;
  writer.add_raw("u8", GgufType::kU8, le_bytes<uint8_t>(200));
  writer.add_raw("i8", GgufType::kI8, le_bytes<int8_t>(-2));
  writer.add_raw("u16", GgufType::kU16, le_bytes<uint16_t>(60000));
  writer.add_raw("i16", GgufType::kI16, le_bytes<int16_t>(-3));
  writer.add_raw("i32", GgufType::kI32, le_bytes<int32_t>(-5));
  writer.add_raw("u64", GgufType::kU64, le_bytes<uint64_t>(6));
  writer.add_raw("i64", GgufType::kI64, le_bytes<int64_t>(-7));
  writer.add_raw("f64", GgufType::kF64, le_bytes<double>(0.25));
  writer.add_raw("huge", GgufType::kU64, le_bytes<uint64_t>(~0ull));
  writer.add_raw("nan", GgufType::kF32, le_bytes<uint32_t>(0x7FC00000));
  const std::string bytes = writer.bytes();
  const GgufFile file = GgufFile::parse(as_bytes(bytes), "m.gguf");
  const IntRange any{-100, 100000};
  CHECK(file.integer("u8", any) == 200);
  CHECK(file.integer("i8", any) == -2);
  CHECK(file.integer("u16", any) == 60000);
  CHECK(file.integer("i16", any) == -3);
  CHECK(file.integer("i32", any) == -5);
  CHECK(file.integer("u64", any) == 6);
  CHECK(file.integer("i64", any) == -7);
  CHECK(file.number("f64") == 0.25);
  CHECK_THAT(load_error([&] { file.integer("huge", any); }),
             Contains("\"huge\"") && Contains("expected -100 to 100000"));
  CHECK_THAT(load_error([&] { file.integer("i8"); }), Contains("is -2, expected 0 to"));
  CHECK_THAT(load_error([&] { file.integer("f64"); }),
             Contains("of type f64, expected an integer"));
  CHECK_THAT(load_error([&] { file.string("u8"); }), Contains("of type u8, expected string"));
  CHECK_THAT(load_error([&] { file.number("nan"); }), Contains("\"nan\" is not a finite number"));
  CHECK_THAT(load_error([&] { file.required_integer("absent"); }),
             Contains("\"absent\" is missing"));
}

struct Hostile {
  const char* what;
  std::string bytes;
  const char* expected;  // part of the sentence
};

std::string header(uint32_t version, uint64_t num_tensors, uint64_t num_metadata) {
  return "GGUF" + le_bytes(version) + le_bytes(num_tensors) + le_bytes(num_metadata);
}

std::string with_metadata(std::string_view key, GgufType type, const std::string& value) {
  GgufWriter file;
  file.add_raw(key, type, value);
  return file.bytes();
}

std::string with_tensor(std::string_view name,
                        const std::vector<int64_t>& ne,
                        int32_t type,
                        uint64_t offset = 0,
                        size_t data_bytes = 4) {
  GgufWriter file;
  file.add_tensor_at(name, ne, type, std::string(data_bytes, '\0'), offset);
  return file.bytes();
}

std::string two_tensors(uint64_t second_offset, const char* second_name = "b") {
  GgufWriter file;
  file.add_tensor("a", std::array<int64_t, 1>{1}, kF32, std::string(4, '\0'));
  file.add_tensor_at(
      second_name, std::array<int64_t, 1>{1}, kF32, std::string(4, '\0'), second_offset);
  return file.bytes();
}

std::string twice_the_key() {
  GgufWriter file;
  file.add_u32("k", 1);
  file.add_u32("k", 1);
  return file.bytes();
}

std::string alignment(uint32_t value) {
  GgufWriter file;
  file.add_u32("general.alignment", value);
  return file.bytes();
}

std::string array_value(GgufType type, uint64_t count, const std::string& elements) {
  return le_bytes(static_cast<int32_t>(type)) + le_bytes(count) + elements;
}

TEST_CASE("gguf: hostile files are refused with the reason", "[engine][unit]") {
  constexpr uint64_t kHuge = 1ull << 63;
  const std::vector<Hostile> cases = {
      {"empty", "", "bytes are missing"},
      {"another format", "PK\3\4 and so on, longer than a header", "is not a GGUF file"},
      {"version 1", header(1, 0, 0), "GGUF version 1, expected 2 or 3"},
      {"version 4", header(4, 0, 0), "GGUF version 4, expected 2 or 3"},
      {"big endian", header(0x03000000, 0, 0), "big-endian"},
      {"2^63 tensors", header(3, kHuge, 0), "the tensor count is 9223372036854775808"},
      {"2^63 metadata", header(3, 0, kHuge), "the metadata count is 9223372036854775808"},
      {"2^63 bytes of key",
       header(3, 0, 1) + le_bytes(kHuge) + std::string(32, 'k'),
       "needs 9223372036854775808 bytes"},
      {"empty key", with_metadata("", GgufType::kU32, le_bytes<uint32_t>(1)), "key 0 is empty"},
      {"key twice", twice_the_key(), "key \"k\" appears twice"},
      {"unknown value type",
       with_metadata("k", static_cast<GgufType>(13), le_bytes<uint32_t>(1)),
       "\"k\" has value type 13"},
      {"bool of 2",
       with_metadata("k", GgufType::kBool, "\2"),
       "\"k\" is a bool, expected 0 or 1, got 2"},
      {"nested array",
       with_metadata(
           "k", GgufType::kArray, array_value(GgufType::kArray, 1, std::string(16, '\0'))),
       "array of arrays"},
      {"2^63 elements",
       with_metadata("k", GgufType::kArray, array_value(GgufType::kU8, kHuge, "x")),
       "element count of metadata key \"k\""},
      {"2^62 strings",
       with_metadata("k", GgufType::kArray, array_value(GgufType::kString, 1ull << 62, "x")),
       "element count of metadata key \"k\""},
      {"long string in array",
       with_metadata("k", GgufType::kArray, array_value(GgufType::kString, 1, le_bytes(kHuge))),
       "bytes are missing"},
      {"alignment 0", alignment(0), "\"general.alignment\" is 0"},
      {"alignment 24", alignment(24), "expected a power of two"},
      {"alignment 2^31", alignment(1u << 31), "\"general.alignment\" is 2147483648"},
      {"tensor without name", with_tensor("", {1}, kF32), "has a name of 0 bytes"},
      {"tensor with a long name",
       with_tensor(std::string(64, 'n'), {1}, kF32),
       "has a name of 64 bytes"},
      {"no dimensions", with_tensor("t", {}, kF32), "has 0 dimensions"},
      {"five dimensions", with_tensor("t", {1, 1, 1, 1, 1}, kF32), "has 5 dimensions"},
      {"dimension 0", with_tensor("t", {4, 0}, kF32), "dimension 1 of size 0"},
      {"dimension -1", with_tensor("t", {-1}, kF32), "dimension 0 of size -1"},
      {"2^64 elements", with_tensor("t", {1ll << 32, 1ll << 32}, kF32), "more elements than"},
      {"2^64 bytes", with_tensor("t", {1ll << 62}, kF32), "more bytes than"},
      {"2^63 - 2 bytes", with_tensor("t", {(1ll << 62) - 1}, 1), "beyond any possible file"},
      {"unknown type", with_tensor("t", {1}, 99), "type id 99"},
      {"removed type", with_tensor("t", {32}, 4), "type Q4_2 (id 4), which was removed"},
      {"part of a block",
       with_tensor("t", {33}, kQ8_0),
       "rows of 33 elements, expected a multiple of 32"},
      {"offset of the first", with_tensor("t", {1}, kF32, 32), "\"t\" has offset 32, expected 0"},
      {"overlap", two_tensors(0), "\"b\" has offset 0, expected 32"},
      {"gap", two_tensors(64), "\"b\" has offset 64, expected 32"},
      {"offset 2^63", two_tensors(kHuge), "\"b\" has offset 9223372036854775808"},
      {"tensor twice", two_tensors(32, "a"), "tensor \"a\" appears twice"},
      {"data cut", with_tensor("t", {64}, kF32, 0, 100), "156 bytes are missing"},
  };
  for (const Hostile& hostile : cases) {
    INFO(hostile.what);
    const std::string message = refusal(hostile.bytes);
    CHECK_THAT(message, Contains(hostile.expected));
    CHECK_THAT(message, Catch::StartsWith("m.gguf: "));
  }
}

TEST_CASE("gguf: every truncation is refused", "[engine][unit]") {
  const GgufWriter writer = small_file();
  const std::string whole = writer.bytes();
  REQUIRE(refusal(whole).empty());
  for (size_t size = 0; size < whole.size(); ++size) {
    INFO("first " << size << " of " << whole.size() << " bytes");
    // A copy of its own, so that a sanitizer sees the first byte read beyond it.
    const auto cut = std::make_unique<std::byte[]>(size);
    std::memcpy(cut.get(), whole.data(), size);
    const std::string message = load_error([&] { GgufFile::parse({cut.get(), size}, "m.gguf"); });
    CHECK(!message.empty());
  }
}

TEST_CASE("gguf: a truncated model says how many bytes are missing", "[engine][unit]") {
  const std::string whole = testing::tiny_gguf();
  REQUIRE(refusal(whole).empty());
  CHECK_THAT(refusal(whole.substr(0, whole.size() - 1000)), Contains("1000 bytes are missing"));
  for (size_t size = 0; size + 1 < whole.size(); size += size < 16384 ? 64 : 4096) {
    INFO("first " << size << " bytes");
    CHECK_THAT(refusal(whole.substr(0, size)),
               Contains("missing") || Contains("has room for at most"));
  }
}

}  // namespace
}  // namespace headwater
