// Tests whose data or device is not on this machine are skipped, visibly. On the test's thread.
#pragma once

#include <string>

namespace headwater::testing {

// Says why the running test case does not check all it could; the case then returns. A program
// whose every case said so exits with 77, which CTest reports as skipped, not as passed.
void skip(const std::string& why);

// What --device said, or "".
const std::string& device_option();

}  // namespace headwater::testing
