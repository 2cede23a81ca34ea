# HEADWATER_CUDA=auto|on|off -> HEADWATER_HAS_CUDA, and the language CUDA. auto takes the toolkit if
# nvcc is in PATH, $CUDACXX or /usr/local/cuda; on insists. CUDA 13 is what the code is built with.
set(HEADWATER_CUDA_ARCHITECTURES 90a-real CACHE STRING
  "GPU architectures, as CMAKE_CUDA_ARCHITECTURES; the preset cuda-release has all")
set(HEADWATER_HAS_CUDA OFF)
if(HEADWATER_CUDA STREQUAL "off" OR (HEADWATER_SANITIZE AND NOT HEADWATER_CUDA STREQUAL "on"))
  return()
endif()

find_program(HEADWATER_NVCC nvcc HINTS $ENV{CUDACXX} PATHS /usr/local/cuda/bin)
set(nvcc_version "")
if(HEADWATER_NVCC)
  execute_process(COMMAND ${HEADWATER_NVCC} --version OUTPUT_VARIABLE nvcc_output)
  if(nvcc_output MATCHES "release ([0-9]+)\\.([0-9]+)")
    set(nvcc_version ${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
  endif()
endif()
if(nvcc_version VERSION_LESS 13)  # none is less, too
  set(why "no nvcc of CUDA 13 or later (found: ${HEADWATER_NVCC} ${nvcc_version})")
  if(HEADWATER_CUDA STREQUAL "on")
    message(FATAL_ERROR "HEADWATER_CUDA=on: ${why}; install the toolkit or set CUDACXX")
  endif()
  message(STATUS "CUDA: ${why}; building for the CPU alone")
  return()
endif()

set(CMAKE_CUDA_COMPILER ${HEADWATER_NVCC})
set(CMAKE_CUDA_ARCHITECTURES ${HEADWATER_CUDA_ARCHITECTURES})
enable_language(CUDA)
# CMake 3.25 does not know that nvcc has C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA_STANDARD 20)
# To a project that requires 3.25, CMake 3.25 says that libnvToolsExt is deprecated, and fails where
# there is none: CUDA 13 has none.
set(required ${CMAKE_MINIMUM_REQUIRED_VERSION})
set(CMAKE_MINIMUM_REQUIRED_VERSION 3.24)
find_package(CUDAToolkit REQUIRED)
set(CMAKE_MINIMUM_REQUIRED_VERSION ${required})
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
set(HEADWATER_HAS_CUDA ON)
message(STATUS "CUDA: nvcc ${nvcc_version}, architectures ${HEADWATER_CUDA_ARCHITECTURES}")
