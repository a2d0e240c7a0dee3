// Stands in for csrc/sm90/ptx/common.h, so that the schedule's headers compile for the host. Warp
// and CTA operations compile but are not what the test calls.
#pragma once
#include <algorithm>
#include <cstring>

#define FMH_DEVICE inline
using std::max;
using std::min;

struct Index {
  int x;
};
static Index threadIdx, blockIdx;

inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __shfl_up_sync(unsigned, int v, int) { return v; }
inline int __shfl_sync(unsigned, int v, int) { return v; }
inline bool __all_sync(unsigned, bool v) { return v; }
inline bool __syncthreads_or(bool v) { return v; }
inline void __syncwarp() {}
inline void __syncthreads() {}
inline void atomicAdd(int* p, int v) { *p += v; }
inline void atomicMin(int* p, int v) { *p = min(*p, v); }
inline void atomicMax(int* p, int v) { *p = max(*p, v); }

namespace fmh {

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
constexpr u32 kAllLanes = 0xffffffffu;

inline int uniform(int x) { return x; }
inline int small_quotient(int a, int b) { return (int)(((float)a + 0.5f) / (float)b); }

}  // namespace fmh
