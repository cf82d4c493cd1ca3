# The sources of the CUDA backend, as full paths. Those that plan need neither a GPU nor CUDA and are in every build.
# The kernels of each task, padded width and precision have a source of their own, so that they compile in parallel;
# they are written into JKOFLOW_INSTANCES:
#   cmake -DJKOFLOW_INSTANCES=FOLDER -P csrc/cuda/sources.cmake
set(cuda ${CMAKE_CURRENT_LIST_DIR})
if(NOT JKOFLOW_INSTANCES)
  set(JKOFLOW_INSTANCES ${CMAKE_CURRENT_BINARY_DIR}/instances)
endif()
set(JKOFLOW_CUDA_KERNEL_SOURCES "")
foreach(task Backward AdaptiveBackward Forward AdaptiveForward)
  foreach(H 256 128 64)  # those that compile longest come first
    foreach(precision Fp32 Tf32x3 Tf32)
      string(TOLOWER ${JKOFLOW_INSTANCES}/${task}_${H}_${precision}.cu name)
      get_filename_component(name ${name} NAME)
      file(CONFIGURE OUTPUT ${JKOFLOW_INSTANCES}/${name} @ONLY CONTENT "\
#include \"cuda/instance.cuh\"

namespace jkoflow::cuda {
template RunOf<Params> instance<Task::k@task@, @H@, Precision::k@precision@>(bool);
}
")
      list(APPEND JKOFLOW_CUDA_KERNEL_SOURCES ${JKOFLOW_INSTANCES}/${name})
    endforeach()
  endforeach()
endforeach()
list(APPEND JKOFLOW_CUDA_KERNEL_SOURCES ${cuda}/prepare_finish.cu)
set(JKOFLOW_CUDA_PLAN_SOURCES ${cuda}/choose.cpp ${cuda}/packing.cpp ${cuda}/plan.cpp)
set(JKOFLOW_CUDA_HOST_SOURCES ${cuda}/kernels.cpp ${cuda}/launch.cpp)
