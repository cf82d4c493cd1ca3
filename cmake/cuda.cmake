# Whether the CUDA kernels are built, and for which GPUs. The GPU of this machine plays no part in it: a build machine
# often has none, or another one than the user's.

set(JKOFLOW_CUDA_DEFAULT_ARCHITECTURES 80-real 90a-real 90-virtual)  # the PTX serves GPUs that are newer than both

# CMake's names for what TORCH_CUDA_ARCH_LIST says in PyTorch's ("8.0;9.0+PTX"); GPUs before 8.0 are left out, since they
# lack the instructions.
function(jkoflow_architectures_from_torch list output)
  string(REGEX REPLACE "[ ,;]+" ";" entries "${list}")
  set(architectures "")
  foreach(entry IN LISTS entries)
    if(entry STREQUAL "")
      continue()
    endif()
    if(NOT entry MATCHES "^([0-9]+)\\.([0-9])([af]?)(\\+PTX)?$")
      message(FATAL_ERROR "jkoflow: TORCH_CUDA_ARCH_LIST must be a list such as '8.0;9.0+PTX', got '${entry}' in "
                          "'${list}'; correct it, or unset it and pass -DCMAKE_CUDA_ARCHITECTURES=...")
    endif()
    set(architecture ${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3})
    if(CMAKE_MATCH_1 LESS 8)
      message(STATUS "jkoflow: no CUDA kernels for ${entry}: they need compute capability 8.0 or newer")
      continue()
    endif()
    list(APPEND architectures ${architecture}-real)
    if(CMAKE_MATCH_4)
      list(APPEND architectures ${architecture}-virtual)
    endif()
  endforeach()
  list(REMOVE_DUPLICATES architectures)
  set(${output} "${architectures}" PARENT_SCOPE)
endfunction()

# Sets output to what CMAKE_CUDA_ARCHITECTURES should be: what the user asked CMake for, else what the user's torch
# extensions are built for, else the default; empty where none of what is asked for can run the kernels.
function(jkoflow_cuda_architectures output)
  if(DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
  elseif(NOT "$ENV{CUDAARCHS}" STREQUAL "")  # CMake's own variable
    set(architectures "$ENV{CUDAARCHS}")
  elseif(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
    jkoflow_architectures_from_torch("$ENV{TORCH_CUDA_ARCH_LIST}" architectures)
  else()
    set(architectures "${JKOFLOW_CUDA_DEFAULT_ARCHITECTURES}")
  endif()
  # Machine code for 9.0 is always for sm_90a, which has the instructions for warp groups (csrc/cuda/shapes.h).
  list(TRANSFORM architectures REPLACE "^90-real$" "90a-real")
  list(TRANSFORM architectures REPLACE "^90$" "90a-real;90-virtual")
  list(REMOVE_DUPLICATES architectures)
  set(${output} "${architectures}" PARENT_SCOPE)
endfunction()

# Sets output to why the kernels cannot be built, or to nothing if they can.
macro(jkoflow_find_cuda output)
  set(${output} "")
  jkoflow_cuda_architectures(CMAKE_CUDA_ARCHITECTURES)
  if(CMAKE_CUDA_ARCHITECTURES STREQUAL "")
    set(${output} "no architecture of '$ENV{TORCH_CUDA_ARCH_LIST}' can run them; add 8.0 or newer to TORCH_CUDA_ARCH_LIST")
  else()
    if(NOT CMAKE_CUDA_COMPILER)  # an earlier search found none, but there may be one now
      unset(CMAKE_CUDA_COMPILER CACHE)
    endif()
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      set(${output} "no working CUDA compiler; put nvcc on PATH or set CUDACXX")
    endif()
  endif()
endmacro()
