// Dense MLA decode for Hopper: one persistent CTA an SM, a producer and two math warpgroups.
// docs/kernels/hopper-dense-decode.md is the guide; csrc/README.md the launch contract.
#include "sm90/decode/dense/consumer.h"
#include "sm90/decode/dense/producer.h"
#include "sm90/ptx/pdl.h"
#include "sm90/ptx/registers.h"

namespace fmh {

// 168 for each thread at entry, moved between the warpgroups. The producer needs more of them where
// it walks chunks, and most where it gathers.
constexpr int kProducerRegisters = FMH_PAGES == 1 ? 56 : FMH_BATCH_INVARIANT ? 40 : 24;
constexpr int kMathRegisters = (3 * 168 - kProducerRegisters) / 2;
static_assert(kMathRegisters % 8 == 0, "setmaxnreg");

FMH_DEVICE void init_barriers() {
#pragma unroll
  for (int half = 0; half < 4; half++) {
    barrier_init(full_barrier(half), FMH_PAGES == 1 ? kGroupThreads : 1);
    barrier_init(empty_barrier(half), empty_arrivals(half));
  }
  barrier_init(kQFull, 1);
  barrier_init(kQEmpty, 8);
  barrier_init_fence();
}

// Q boxes of fewer than 64 rows leave the rest of each column tile as it is: zeros then, for
// leftovers may be NaN, whose moving maxima would make every block rescale.
FMH_DEVICE void clear_dead_rows(char* smem, int tile_rows) {
  const int chunks = (kTileRows - tile_rows) * 8;  // of 16 bytes, in a column tile
#pragma unroll 1
  for (int i = threadIdx.x; i < chunks; i += kThreads) {
    char* at = smem + kOffsetQ + tile_rows * 128 + i * 16;
#pragma unroll
    for (int t = 0; t < kColumnTiles; t++) {
      *(uint4*)(at + t * kTileBytes) = make_uint4(0, 0, 0, 0);
    }
  }
  proxy_fence();
}

// The lengths decide which page ids are read: two loads from DRAM, one after the other. Warps that
// have nothing to do yet fetch small block tables meanwhile.
FMH_DEVICE void prefetch_table(const DenseDecodeParams& p) {
  constexpr int kFirst = kThreads - 96, kLineEntries = 32;
  const int entry = ((int)threadIdx.x - kFirst) * kLineEntries;
  if (entry < 0 || p.capacity >= 1 << 20) return;
  const int width = small_quotient(p.capacity, p.page_block_size);
  if (entry < (p.batch - 1) * p.block_table_stride + width) line_prefetch(p.block_table + entry);
}

}  // namespace fmh

extern "C" __global__ void __launch_bounds__(fmh::kThreads, 1)
    fmh_dense_decode(const __grid_constant__ fmh::TensorMap q_map,
                     const __grid_constant__ fmh::TensorMap k_left,
                     const __grid_constant__ fmh::TensorMap k_right,
                     const __grid_constant__ DenseDecodeParams p) {
  extern __shared__ __align__(1024) char smem[];
  const int position = fmh::uniform(fmh::small_quotient(blockIdx.x, p.lanes));
  const fmh::Tile tile(p, blockIdx.x - position * p.lanes);
  if (threadIdx.x == 0) {
    if (fmh::shared_address(smem) != fmh::kSharedBase) asm volatile("trap;");
    fmh::init_barriers();
    fmh::prefetch_map(&q_map);
    fmh::prefetch_map(&k_left);
    fmh::prefetch_map(&k_right);
  }
  if (p.tile_rows < fmh::kTileRows) fmh::clear_dead_rows(smem, p.tile_rows);
  fmh::wait_for_predecessors();
  fmh::prefetch_table(p);
  const int part = fmh::schedule(smem, p, position, tile.lane);  // ends with a CTA barrier

  // One branch for each role, with code of its own: setmaxnreg is honoured only then, and a loop
  // shared by both math groups would serialise their products.
  const int group = threadIdx.x / fmh::kGroupThreads;
  if (group == 0) {
    fmh::registers_grow<fmh::kMathRegisters>();
    fmh::consume<0>(smem, p, tile, part);
  } else if (group == 1) {
    fmh::registers_grow<fmh::kMathRegisters>();
    fmh::consume<1>(smem, p, tile, part);
  } else {
    fmh::registers_shrink<fmh::kProducerRegisters>();
    fmh::produce(smem, &q_map, &k_left, &k_right, p, tile);
  }
}
