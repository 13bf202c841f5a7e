// A test's stand-in for the header of the same name in the user's CUDA: the one type that TensorRT's headers take
// from it.
#pragma once

struct CUstream_st;
using cudaStream_t = CUstream_st*;
