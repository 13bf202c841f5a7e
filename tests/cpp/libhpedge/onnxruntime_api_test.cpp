// The positions in onnxruntime_api.hpp are those of the real header.
#include <onnxruntime_c_api.h>

#include "onnxruntime_api.hpp"

#define SAME(NAME) static_assert(offsetof(::OrtApi, NAME) == hpdval::ort::NAME.position * sizeof(void*), #NAME)

SAME(GetErrorCode);
SAME(GetErrorMessage);
SAME(CreateEnv);
SAME(CreateSessionFromArray);
SAME(Run);
SAME(CreateSessionOptions);
SAME(SetSessionLogSeverityLevel);
SAME(SetIntraOpNumThreads);
SAME(CreateTensorWithDataAsOrtValue);
SAME(GetTensorMutableData);
SAME(GetTensorElementType);
SAME(GetTensorShapeElementCount);
SAME(GetTensorTypeAndShape);
SAME(CreateCpuMemoryInfo);
SAME(ReleaseEnv);
SAME(ReleaseStatus);
SAME(ReleaseMemoryInfo);
SAME(ReleaseSession);
SAME(ReleaseValue);
SAME(ReleaseTensorTypeAndShapeInfo);
SAME(ReleaseSessionOptions);
static_assert(offsetof(OrtApiBase, GetApi) == offsetof(hpdval::ort::Base, get_api) &&
              offsetof(OrtApiBase, GetVersionString) == offsetof(hpdval::ort::Base, version));
static_assert(ORT_LOGGING_LEVEL_ERROR == hpdval::ort::LOG_ERRORS &&
              OrtDeviceAllocator == hpdval::ort::DEVICE_ALLOCATOR && OrtMemTypeDefault == hpdval::ort::DEFAULT_MEMORY);
static_assert(ORT_FAIL == hpdval::ort::FAIL && ORT_INVALID_PROTOBUF == hpdval::ort::INVALID_PROTOBUF &&
              ORT_NOT_IMPLEMENTED == hpdval::ort::NOT_IMPLEMENTED && ORT_INVALID_GRAPH == hpdval::ort::INVALID_GRAPH);
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == hpdval::ort::FLOAT &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 == hpdval::ort::UINT8 &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == hpdval::ort::FLOAT16);
