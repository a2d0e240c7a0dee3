// Fragments of split requests: what the schedule, the walk and the combine kernel agree on.
#pragma once
#include "sm90/core/entries.h"

namespace fmh {

// Chunks of the batch invariant variant: at most kMaxChunks per request, an even number of
// blocks each, decided by the request's own length alone.
constexpr int kMaxChunks = 32;

FMH_DEVICE int chunk_blocks(const MlaParams& p, int blocks) {
  const int least = (blocks + kMaxChunks - 1) / kMaxChunks;
  return max(p.chunk_blocks, least + (least & 1));
}

// Fragments of a row that one warp merges in the combine kernel; more take a slower way.
constexpr int kFewFragments = 32;

// What a part tells the combine kernel of the request that it splits; 0: none.
FMH_DEVICE int split_info(int request, int fragments) { return request << 8 | fragments; }
FMH_DEVICE int split_request(int info) { return info >> 8; }
FMH_DEVICE int split_fragments(int info) { return info & 255; }
static_assert(kMaxParts < 256, "a request has at most one fragment a part");

FMH_DEVICE int inclusive_scan(int v, int lane) {
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const int below = __shfl_up_sync(kAllLanes, v, o);
    if (lane >= o) v += below;
  }
  return v;
}

}  // namespace fmh
