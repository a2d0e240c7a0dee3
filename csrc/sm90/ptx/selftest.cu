// Each instruction wrapper against plain code: kernels of one CTA for tests/gpu/test_ptx.py.
// Compiled with FMH_FP16 only; not part of any call.
#include "sm90/ptx/copy.h"
#include "sm90/ptx/fence.h"
#include "sm90/ptx/matrix.h"
#include "sm90/ptx/mbarrier.h"
#include "sm90/ptx/wgmma.h"

namespace fmh {

constexpr u32 kTile = 8192;  // [64 rows][128 bytes]

enum Product { kScores, kSharedWeights, kRegisterWeights, kStoredWeights, kHeldScores };

// Fragment of a 64 x 16 A operand, column `k0` on, of a row-major 64 x 64 matrix.
FMH_DEVICE void load_fragment(const u16* a, int k0, u32 (&r)[4]) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = warp * 16 + (lane >> 2) + (i & 1) * 8;
    r[i] = *(const u32*)(a + row * 64 + k0 + (lane & 3) * 2 + (i >> 1) * 8);
  }
}

template <int N>
FMH_DEVICE void store_accumulator(float* out, const float (&x)[N]) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int i = 0; i < N; i++) {
    const int row = warp * 16 + (lane >> 2) + ((i >> 1) & 1) * 8;
    out[row * 2 * N + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)] = x[i];
  }
}

}  // namespace fmh

// A: 64 x 64, one box of a rank-4 map; B: 64 rows x 256 columns, one box of four column tiles.
// out: A * B[:, :64]^T (64 x 64) or A * B (64 x 256), float32; kHeldScores: the former, half of A
// from registers. One warpgroup.
extern "C" __global__ void __launch_bounds__(128)
    fmh_test_product(const __grid_constant__ fmh::TensorMap a_map,
                     const __grid_constant__ fmh::TensorMap b_map, const fmh::u16* a, float* out,
                     int product) {
  using namespace fmh;
  extern __shared__ __align__(1024) char smem[];
  __shared__ __align__(8) u64 barrier;
  const u32 full = shared_address(&barrier), a_tile = shared_address(smem), b = a_tile + kTile;
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(full, 5 * kTile);
    tma_load(a_tile, &a_map, 0, 0, 0, 0, full);
    tma_load(b, &b_map, 0, 0, 0, 0, full, l2_policy(kEvictAll));
  }
  barrier_wait(full, 0);
  u32 weights[4][4];
#pragma unroll
  for (int step = 0; step < 4; step++) load_fragment(a, step * 16, weights[step]);
  if (product == kStoredWeights) {  // through the consumer's stmatrix, over the tile
    const u32 lane = threadIdx.x & 31, row = (threadIdx.x >> 5) * 16 + (lane & 15);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const u32 chunk = (2 * i + (lane >> 4)) ^ (row & 7);
      store_matrix_x4(a_tile + row * 128 + (chunk << 4), weights[i]);
    }
    proxy_fence();
    __syncthreads();
  }
  if (product == kScores) {
    float s[32];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      wgmma_qk(s, descriptor_k_major(a_tile + step * 32), descriptor_k_major(b + step * 32),
               step > 0);
    }
    wgmma_commit();
    wgmma_wait();
    pin(s);
    store_accumulator(out, s);
  } else if (product == kHeldScores) {
    const u32 lane = threadIdx.x & 31, row = (threadIdx.x >> 5) * 16 + (lane & 15);
    float s[32];
#pragma unroll
    for (int step = 2; step < 4; step++) {
      const u32 chunk = (2 * step + (lane >> 4)) ^ (row & 7);
      load_matrix_x4(weights[step], a_tile + row * 128 + (chunk << 4));
    }
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 2; step++) {
      wgmma_qk(s, descriptor_k_major(a_tile + step * 32), descriptor_k_major(b + step * 32),
               step > 0);
    }
#pragma unroll
    for (int step = 2; step < 4; step++) {
      wgmma_qk_registers(s, weights[step], descriptor_k_major(b + step * 32));
    }
    wgmma_commit();
    wgmma_wait();
    pin(s);
    store_accumulator(out, s);
  } else if (product == kRegisterWeights) {
    float o[128];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      wgmma_pv_registers(o, weights[step], descriptor_mn_major(b + step * 2048, kTile), step > 0);
    }
    wgmma_commit();
    wgmma_wait();
    pin(o);
    store_accumulator(out, o);
  } else {
    float o[128];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
      wgmma_pv_shared(o, descriptor_k_major(a_tile + step * 32),
                      descriptor_mn_major(b + step * 2048, kTile), step > 0);
    }
    wgmma_commit();
    wgmma_wait();
    pin(o);
    store_accumulator(out, o);
  }
}

// Counts quotients a / b, a < 2^20, that small_quotient gets wrong; block b - 1 takes divisor b.
extern "C" __global__ void fmh_test_quotients(int* wrong) {
  const int b = blockIdx.x + 1;
  int own = 0;
  for (int a = threadIdx.x; a < 1 << 20; a += blockDim.x) own += fmh::small_quotient(a, b) != a / b;
  if (own) atomicAdd(wrong, own);
}

// 64 rows of 16 bytes: the first `valid` are copied, the rest become zeros. 64 threads.
extern "C" __global__ void fmh_test_gather(const fmh::u16* source, fmh::u16* out, int valid) {
  using namespace fmh;
  __shared__ __align__(16) uint4 rows[64];
  __shared__ __align__(8) u64 barrier;
  const u32 full = shared_address(&barrier);
  if (threadIdx.x == 0) barrier_init(full, 64);
  rows[threadIdx.x] = make_uint4(~0u, ~0u, ~0u, ~0u);
  __syncthreads();
  copy_16_or_zero(shared_address(&rows[threadIdx.x]), source + threadIdx.x * 8,
                  (int)threadIdx.x < valid ? 16 : 0, l2_policy(kEvictHalf));
  barrier_arrive_after_copies(full);
  barrier_wait(full, 0);
  ((uint4*)out)[threadIdx.x] = rows[63 - threadIdx.x];  // another thread's row
}

// out[i] = 2^x[i], log2(x[i]), pairs rounded to the element type, and those that were above 0 to
// fp16 and back.
extern "C" __global__ void fmh_test_functions(const float* x, float* exp2, float* log2,
                                              fmh::u32* pairs, float* halves) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  exp2[i] = fmh::exp2_approx(x[i]);
  log2[i] = fmh::log2_approx(fabsf(x[i]));
  if ((i & 1) == 0) {
    pairs[i / 2] = fmh::pack(x[i], x[i + 1]);
    const float2 back = fmh::unpack_half(fmh::pack_half(x[i], x[i + 1]));
    fmh::store_8_if(x[i] > 0, halves + i, __float_as_uint(back.x), __float_as_uint(back.y));
  }
}
