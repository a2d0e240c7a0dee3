// Merges the fragments of split requests: out = sum_j 2^(m_j - m) O_j / sum_j 2^(m_j - m) l_j,
// where O_j is its stored fp16 times the scale of the row's half.
//
// Launched behind the main kernel under programmatic dependent launch. Fragments are always added
// in the order of their index, whoever computed them and whenever: the result is bitwise the same
// on every run. Requests that were not split are the main kernel's; nothing is read for them.
#include "sm90/core/merge.h"
#include "sm90/ptx/pdl.h"

namespace fmh {

// Neighbours in this order are on different SMs.
FMH_DEVICE int team_of_grid() { return team_of_cta() * gridDim.x + blockIdx.x; }
FMH_DEVICE int teams_of_grid() { return kTeams * gridDim.x; }

// Up to this many fragments a row's slices are left to single warps. Where there is an SM for every
// slice, 8 loads in flight are all that a warp should have to wait for.
FMH_DEVICE int few_fragments(const MlaParams& p) {
  return p.batch * p.lanes * p.tile_rows * 4 > gridDim.x ? kFewFragments : 8;
}

// Units of a request, the work of a team: a slice of columns of a row where there are many
// fragments, else such a slice for each of its warps.
FMH_DEVICE int units_of(const MlaParams& p, int fragments, int few) {
  const int slices = fragments <= few ? few_slices(fragments)
                                      : kDimV / many_columns(many_groups(fragments)) * kTeamWarps;
  return (p.lanes * p.tile_rows * (fragments > 1 ? slices : 0) + kTeamWarps - 1) / kTeamWarps;
}

#if FMH_BATCH_INVARIANT

// Every request's chunks lie in its own slots; how many there are follows from its length.
FMH_DEVICE void combine_all(const MlaParams& p) {
  const int units = units_of(p, kFewFragments, kFewFragments);
#pragma unroll 1
  for (int i = team_of_grid(); i < p.batch * units; i += teams_of_grid()) {
    const int request = i / units;
    const int blocks = uniform(request_blocks(p, request));
    const int chunk = chunk_blocks(p, blocks);
    if (blocks <= chunk) continue;
    const u32 slot_rows = p.lanes * p.tile_rows, first = request * p.max_chunks * slot_rows;
    const Fragments f{request, (blocks + chunk - 1) / chunk, first, first, slot_rows};
    const int unit = i - request * units;
    if (unit < units_of(p, f.count, kFewFragments)) combine_few(p, f, unit);
  }
}

#else

// Parts announce the requests that they split; the units of all of them form one line.
FMH_DEVICE void combine_all(const MlaParams& p) {
  constexpr int kWarps = (kMaxParts + 31) / 32;
  __shared__ int info[kWarps * 32], through[kWarps * 32], warp_total[kWarps];
  __shared__ float4 shared[kTeams][kTeamThreads];
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int few = few_fragments(p);
  const int mine = thread < p.parts ? __ldcg(p.part_info + thread) : 0;
  const int units = units_of(p, split_fragments(mine), few);
  int sum = 0;
  if (warp < kWarps) {
    sum = inclusive_scan(units, lane);
    if (lane == 31) warp_total[warp] = sum;
  }
  if (!__syncthreads_or(units > 0)) return;  // nothing was split: the usual case of large batches
  int total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; i++) {
    if (i < warp) sum += warp_total[i];
    total += warp_total[i];
  }
  if (warp < kWarps) {
    info[thread] = mine;
    through[thread] = sum;
  }
  __syncthreads();

  const u32 slot_rows = p.lanes * p.tile_rows;
#pragma unroll 1
  for (int unit = team_of_grid(); unit < total; unit += teams_of_grid()) {
    int part = 0;  // the number of entries of `through` that are <= unit
#pragma unroll
    for (int i = 0; i < kWarps; i++) {
      part += __popc(__ballot_sync(kAllLanes, through[i * 32 + lane] <= unit));
    }
    part = uniform(part);
    const int split = uniform(info[part]), local = unit - (part ? through[part - 1] : 0);
    const u32 slot = 2 * part * slot_rows;  // walk.h: FragmentWalk::slot
    const Fragments f{split_request(split), split_fragments(split), slot + slot_rows, slot,
                      2 * slot_rows};
    if (f.count <= few) {
      combine_few(p, f, local);
    } else if (many_groups(f.count) == 8) {
      combine_many<8>(p, f, local, shared[team_of_cta()]);
    } else {
      combine_many<16>(p, f, local, shared[team_of_cta()]);
    }
  }
}

#endif  // FMH_BATCH_INVARIANT

}  // namespace fmh

extern "C" __global__ void __launch_bounds__(fmh::kCombineThreads, 2)
    fmh_combine(const __grid_constant__ MlaParams p) {
  fmh::wait_for_predecessors();
  fmh::release_successors();
  fmh::combine_all(p);
}
