// MEMSYS_HD marks a function that runs on the host and on the device, so that one body serves a plain loop under the
// host compiler and a kernel under nvcc. The one place that asks which compiler this is.
#pragma once

#if defined(__CUDACC__)
#define MEMSYS_HD __host__ __device__
#else
#define MEMSYS_HD
#endif
