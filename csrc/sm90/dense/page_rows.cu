// Dense decode: pages of any size, rows gathered.
#define FMH_LISTS 0
#include "sm90/core/kernel.h"
#include "sm90/keys/page_rows.h"

extern "C" __global__ void __launch_bounds__(fmh::kThreads, 1)
    fmh_dense_decode(const __grid_constant__ fmh::TensorMap q_map,
                     const __grid_constant__ fmh::TensorMap k_left,
                     const __grid_constant__ fmh::TensorMap k_right,
                     const __grid_constant__ MlaParams p) {
  extern __shared__ __align__(1024) char smem[];
  fmh::attend<fmh::PageRowKeys>(smem, {&q_map, &k_left, &k_right}, p);
}
