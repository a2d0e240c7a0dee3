// Who computes what: every CTA derives its own share of the batch from cache_seqlens at start.
//
// The batch is one line of cost: request r costs its blocks plus `request_cost` (the first
// request rides on the start of a part). `used` parts cut the line at p * total / used; a cut is
// moved to a request's edge when it would leave a sliver. tests/hopper/test_schedule_model.py
// holds the same arithmetic in Python and checks that blocks are covered exactly once and that
// the fragments promised to the combine kernel are those the parts compute.
//
// The shared-memory layout is the kernel's: its header comes before this one.
#pragma once
#include "sm90/core/fragments.h"
#include "sm90/ptx/priority.h"

namespace fmh {

// Blocks [(first_request, first_block), (last_request, last_block)) are this part's.
struct ScheduleResult {
  int first_request, first_block, last_request, last_block;
  int whole_begin, whole_end;  // requests of this part when none is split
  int last_cut_position;       // a later cut than this spares the request cut at the end
  bool prefetch;               // parts are long: short ones only add to the first loads of all
  EvictFirst evict;            // K that is prefetched, or many times L2, is like other data
#if FMH_LISTS
  int step;  // from a request of this part to its next
  int part;  // kept here: registers are what kernels over lists have least of
#endif

  FMH_DEVICE void reset(int part, int batch) {  // no cut found: part 0 has all, the others nothing
    first_request = part == 0 ? 0 : batch;
    last_request = batch;
    first_block = last_block = 0;
    whole_begin = batch;
    whole_end = 0;
#if FMH_LISTS
    step = 1;
#endif
  }

#if FMH_LISTS
  // Requests dealt out one by one: as good as any cut where there are many, at no cost.
  FMH_DEVICE void deal(const MlaParams& p, int part) {
    reset(part, p.batch);
    first_request = part;
    step = p.parts;
    prefetch = p.prefetch > 0;
    evict = kEvictNone;
  }
#endif
};
static_assert(sizeof(ScheduleResult) <= 64, "kOffsetScan follows");

// A request without keys, as in a padded batch, only has zeros written: it counts as one block.
// `cost` is 0 where every request is cut into the same number of equal parts.
FMH_DEVICE int request_overhead(int cost, int request, int blocks) {
  return request == 0 ? 0 : blocks > 0 ? cost : min(cost, 1);
}

// a / b, exact. Small numbers, the usual case, take the short way.
FMH_DEVICE int quotient(u32 a, int b) {
  return a < (1u << 20) ? small_quotient((int)a, b) : (int)(a / (u32)b);
}

// How the line of cost is cut. 32-bit arithmetic on cost >> shift keeps products in range.
struct Cuts {
  int shift, total, used, sliver;

  FMH_DEVICE Cuts(int cost, int parts_used) {
    shift = max(0, 10 - __clz(cost));
    total = cost >> shift;
    used = parts_used;
    sliver = cost >= 32 * used ? 2 : (cost >= 8 * used ? 1 : 0);
  }
  FMH_DEVICE int at(int part) const { return quotient(part * total, used) << shift; }
  // The last cut at or before `position`.
  FMH_DEVICE int last_before(int position) const {
    const u32 x = (u32)(position >> shift) + 1;
    return min(used - 1, quotient(x * used + total - 1, total) - 1);
  }
};

// If `cut`, the start (kEnd 0) or the end (1) of a part at `x` on the line, falls into request
// `r`, which takes [before, before + overhead + blocks), records where.
template <int kEnd>
FMH_DEVICE void place_cut(const MlaParams& p, const Cuts& cuts, int cut, int x, int r,
                          int before, int overhead, int blocks, ScheduleResult* result) {
  if (cut <= 0 || cut >= cuts.used || x < before || x >= before + overhead + blocks) return;
  int request = r, block = x - before - overhead;
#if FMH_BATCH_INVARIANT
  const int chunk = chunk_blocks(p, blocks);
  block = block <= 0 ? 0 : (block + chunk / 2) / chunk * chunk;
  if (block >= blocks) request = r + 1, block = 0;
#else
  if (block < max(cuts.sliver, 1)) block = 0;
  if (block > 0 && blocks - block < cuts.sliver) request = r + 1, block = 0;
#endif
  if (kEnd == 0) {
    result->first_request = request;
    result->first_block = block;
  } else {
    result->last_request = request;
    result->last_block = block;
    result->last_cut_position = before + overhead + blocks - max(cuts.sliver, 1);
  }
}

// The line of cost as one thread sees it: its requests [begin, end), and what lies before them.
struct CostLine {
  int begin, end;
  int blocks;  // of request `begin`
  int before, total;
  int used;  // parts worth using
  int request_cost;

  // Parts that `cost` is worth: at least min_part_blocks each, twice that where requests would be
  // cut into many.
  FMH_DEVICE static int worth(const MlaParams& p, int cost) {
    const int most = cost >> (31 - __clz(p.min_part_blocks));
    return max(1, min(p.parts, max(most / 2, min(most, kFewFragments * p.batch))));
  }

  // Requests of equal length: the same number of parts for every request and no charge for
  // requests, if at most an eighth of the parts stays idle. True where that is so.
  FMH_DEVICE bool settle(const MlaParams& p, bool equal, int equal_blocks) {
    request_cost = p.request_cost;
    used = worth(p, total);
    if (!equal) return false;
    const int without_charge = p.batch * equal_blocks;
    const int useful = worth(p, without_charge);
    const int even = small_quotient(useful, p.batch) * p.batch;
    if ((useful - even) * 8 > useful) return false;
    request_cost = 0;
    used = even;
    before = begin * equal_blocks;
    total = without_charge;
    return true;
  }
};

// At most 32 requests: every warp scans for itself, without a barrier; warp 0 places the cuts.
FMH_DEVICE CostLine scan_small(const MlaParams& p, int part, ScheduleResult* result) {
  const int lane = threadIdx.x & 31;
  const bool mine = lane < p.batch;
  const int blocks = mine ? request_blocks(p, lane) : 0;
  const int cost = mine ? blocks + request_overhead(p.request_cost, lane, blocks) : 0;
  const int through = inclusive_scan(cost, lane);
  if (threadIdx.x == 0) result->reset(part, p.batch);
  __syncwarp();
  CostLine line;
  line.begin = lane;
  line.end = threadIdx.x < p.batch ? lane + 1 : lane;
  line.blocks = blocks;
  line.before = through - cost;
  line.total = __shfl_sync(kAllLanes, through, 31);
  const int first_blocks = __shfl_sync(kAllLanes, blocks, 0);
  line.settle(p, __all_sync(kAllLanes, !mine || blocks == first_blocks), first_blocks);
  return line;
}

// Any batch: a thread owns consecutive requests. `whole` is set if no request is to be split.
FMH_DEVICE CostLine scan_large(char* smem, const MlaParams& p, int part,
                               ScheduleResult* result, bool& whole) {
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  int* warp_total = shared_at<int>(smem, kOffsetScan);
  int* load = shared_at<int>(smem, kOffsetPartLoad);
  const int stride = (p.batch + kThreads - 1) / kThreads;
  CostLine line;
  line.begin = min(p.batch, thread * stride);
  line.end = min(p.batch, line.begin + stride);

  const int first_blocks = request_blocks(p, 0);
  int own = 0;
  bool differs = false;
  line.blocks = 0;
#pragma unroll 1
  for (int r = line.begin; r < line.end; r++) {
    const int blocks = request_blocks(p, r);
    if (r == line.begin) line.blocks = blocks;
    own += blocks + request_overhead(p.request_cost, r, blocks);
    differs |= blocks != first_blocks;
  }
  const int through = inclusive_scan(own, lane);
  if (lane == 31) warp_total[warp] = through;
  if (thread < p.parts) load[thread] = 0;
  if (thread == 0) result->reset(part, p.batch);
  const bool equal = !__syncthreads_or(differs);
  line.before = through - own;
  line.total = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; i++) {
    const int t = warp_total[i];
    if (i < warp) line.before += t;
    line.total += t;
  }

  if (line.settle(p, equal, first_blocks)) return line;

  // Whole requests only, each to the part its middle falls into, if that balances to within 5 %
  // and two blocks: no partial results, no combine.
  if (p.batch * 21 >= p.parts * 20 && line.total > 0) {
    const int shift = max(0, 10 - __clz(line.total));
    const u32 twice = (u32)(2 * line.total) >> shift;
    int first = p.batch, last = 0, before = line.before;
#pragma unroll 1
    for (int r = line.begin; r < line.end; r++) {
      const int blocks = r == line.begin ? line.blocks : request_blocks(p, r);
      const int cost = blocks + request_overhead(p.request_cost, r, blocks);
      const u32 middle = (u32)(2 * before + cost) >> shift;
      const int to = min(p.parts - 1, (int)(middle * p.parts / twice));
      before += cost;
      atomicAdd(load + to, cost);
      if (to == part) {
        first = min(first, r);
        last = r + 1;
      }
    }
    __syncthreads();
    const int limit = (line.total + line.total / 20) / p.parts + 2;
    whole = !__syncthreads_or(thread < p.parts && load[thread < p.parts ? thread : 0] > limit);
    if (whole && first < last) {
      atomicMin(&result->whole_begin, first);
      atomicMax(&result->whole_end, last);
    }
  }
  return line;
}

// The part of the CTAs at `position` of the grid. Idle ones lie between the others, not side by
// side at the end: memory serves the rest more evenly.
FMH_DEVICE int spread_part(int position, int used, int parts) {
  const int before = small_quotient(position * used + parts - 1, parts);
  const int through = small_quotient((position + 1) * used + parts - 1, parts);
  return through > before ? before : used + position - before;
}

// Fills the ScheduleResult in shared memory and, once per part, tells the combine kernel. Returns
// the part; ends with a CTA barrier.
FMH_DEVICE int schedule(char* smem, const MlaParams& p, int part, int lane_of_part) {
  ScheduleResult* result = shared_at<ScheduleResult>(smem, kOffsetSchedule);
#if FMH_LISTS
  if (p.lists.dealt) {
    if (threadIdx.x == 0) result->deal(p, part);
    __syncthreads();
    return part;
  }
#endif
  bool whole = false;
  const CostLine line =
      p.batch <= 32 ? scan_small(p, part, result) : scan_large(smem, p, part, result, whole);
  const Cuts cuts(line.total, line.used);
  if (threadIdx.x == 0) {
    result->prefetch = p.prefetch > 0 && line.total >= p.prefetch * line.used;
    const bool few = !result->prefetch && line.total <= p.evict_first;
    result->evict = !few ? kEvictNone : line.total <= p.evict_half ? kEvictHalf : kEvictAll;
  }
  if (!whole) {
    part = uniform(spread_part(part, line.used, p.parts));
    const int start = cuts.at(part), stop = cuts.at(part + 1);
    int before = line.before;
#pragma unroll 1
    for (int r = line.begin; r < line.end; r++) {
      const int blocks = r == line.begin ? line.blocks : request_blocks(p, r);
      const int overhead = request_overhead(line.request_cost, r, blocks);
      place_cut<0>(p, cuts, part, start, r, before, overhead, blocks, result);
      place_cut<1>(p, cuts, part + 1, stop, r, before, overhead, blocks, result);
      before += overhead + blocks;
    }
  }
#if FMH_LISTS
  if (threadIdx.x == 0) result->part = part;
#endif
  __syncthreads();
  if (whole) {
    if (threadIdx.x == 0) {
      result->first_request = min(result->whole_begin, result->whole_end);
      result->last_request = result->whole_end;
    }
    __syncthreads();
  }
#if !FMH_BATCH_INVARIANT
  // The part that starts a split request announces it; later parts of the request do not. Done by
  // a warp that has no other work.
  if (p.part_info != nullptr && lane_of_part == 0 && threadIdx.x == kThreads - 32) {
    const bool starts_split =
        result->last_block > 0 &&
        (result->last_request > result->first_request || result->first_block == 0);
    const int fragments = cuts.last_before(result->last_cut_position) - part + 1;
    p.part_info[part] = starts_split ? split_info(result->last_request, fragments) : 0;
  }
#endif
  return part;
}

}  // namespace fmh
