// Sparse decode and prefill over caches in the dtype of q: the rows that a list names, gathered.
#define FMH_LISTS 1
#include "sm90/core/kernel.h"
#include "sm90/keys/list_rows.h"

extern "C" __global__ void __launch_bounds__(fmh::kThreads, 1)
    fmh_sparse(const __grid_constant__ fmh::TensorMap q_map, const __grid_constant__ MlaParams p) {
  extern __shared__ __align__(1024) char smem[];
  fmh::attend<fmh::ListRowKeys>(smem, {&q_map, nullptr, nullptr}, p);
}
