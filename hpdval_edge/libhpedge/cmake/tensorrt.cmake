# Headers and libraries of the TensorRT whose engines are to run, and of the CUDA runtime. CMake looks in /usr/include,
# /usr/lib and their folders of this architecture (a Jetson, Debian packages) by itself.
set(PLACES /usr/local/tensorrt /opt/tensorrt)
set(CUDA_PLACES /usr/local/cuda)
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS ENV TENSORRT_ROOT PATHS ${PLACES} PATH_SUFFIXES include)
find_library(TENSORRT_LIBRARY nvinfer HINTS ENV TENSORRT_ROOT PATHS ${PLACES} PATH_SUFFIXES lib lib64)
find_path(CUDA_RUNTIME_INCLUDE_DIR cuda_runtime_api.h HINTS ENV CUDA_PATH PATHS ${CUDA_PLACES} PATH_SUFFIXES include)
find_library(CUDA_RUNTIME_LIBRARY cudart HINTS ENV CUDA_PATH PATHS ${CUDA_PLACES} PATH_SUFFIXES lib64 lib)
foreach(FOUND TENSORRT_INCLUDE_DIR TENSORRT_LIBRARY CUDA_RUNTIME_INCLUDE_DIR CUDA_RUNTIME_LIBRARY)
  if(NOT ${FOUND})
    message(FATAL_ERROR "HPEDGE_TENSORRT needs TensorRT 10.0 or later and CUDA, and ${FOUND} was not found; on a "
      "Jetson run: apt install libnvinfer-dev cuda-cudart-dev-12-6 (JetPack 6) or cuda-cudart-dev-13-0 (JetPack 7); "
      "elsewhere name it with -D${FOUND}=...")
  endif()
endforeach()
target_sources(hpedge PRIVATE src/tensorrt_engine.cpp src/engine_cache.cpp)
target_include_directories(hpedge SYSTEM PRIVATE ${TENSORRT_INCLUDE_DIR} ${CUDA_RUNTIME_INCLUDE_DIR})
target_link_libraries(hpedge PRIVATE ${TENSORRT_LIBRARY} ${CUDA_RUNTIME_LIBRARY})
# The installed library finds them where they were found here.
set_target_properties(hpedge PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
