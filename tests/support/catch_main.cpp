#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#include <iostream>

#include "tests/support/skip.h"

namespace {

constexpr int kSkipReturnCode = 77;  // hw_test in tests/CMakeLists.txt

struct Cases {
  bool current_skips = false;
  int run = 0;
  int skipped = 0;
};
Cases cases;
std::string device;

struct SkipCounter final : Catch::TestEventListenerBase {
  using TestEventListenerBase::TestEventListenerBase;
  void testCaseStarting(const Catch::TestCaseInfo&) override { cases.current_skips = false; }
  void testCaseEnded(const Catch::TestCaseStats&) override {
    ++cases.run;
    cases.skipped += cases.current_skips;
  }
};
CATCH_REGISTER_LISTENER(SkipCounter)

}  // namespace

void headwater::testing::skip(const std::string& why) {
  cases.current_skips = true;
  std::cout << "skipped: " << Catch::getResultCapture().getCurrentTestName() << ": " << why << "\n";
}

const std::string& headwater::testing::device_option() { return device; }

int main(int argc, char** argv) {
  Catch::Session session;
  session.cli(session.cli() | Catch::clara::Opt(device, "cuda")["--device"](
                                  "run the cases that take a device there, not on ref and cpu"));
  const int result = session.run(argc, argv);
  if (cases.skipped > 0) std::cout << cases.skipped << " of " << cases.run << " cases skipped\n";
  return result == 0 && cases.run > 0 && cases.skipped == cases.run ? kSkipReturnCode : result;
}
