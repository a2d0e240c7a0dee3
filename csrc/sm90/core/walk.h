// From a part's share of the batch to its fragments, one after the other. The producer and both
// math groups walk the same list, each for itself.
#pragma once
#include "sm90/core/schedule.h"

namespace fmh {

// kUniform: called by whole warps, values go to uniform registers.
template <bool kUniform>
struct FragmentWalk {
  const ScheduleResult* range;
  int request, next_request, end_request;
  int length, next_length;  // tokens
  int blocks, begin, end;   // blocks of the request; those of the fragment
#if FMH_BATCH_INVARIANT
  int limit, chunk;  // end of this part's blocks of the request; blocks of a chunk
  int next_offset;   // of the next chunk from this part's first block of the request
#endif

  FMH_DEVICE int same(int x) const { return kUniform ? uniform(x) : x; }

  FMH_DEVICE FragmentWalk(char* smem, const MlaParams& p) {
    range = shared_at<const ScheduleResult>(smem, kOffsetSchedule);
    next_request = same(range->first_request);
    end_request = same(range->last_request + (range->last_block > 0));
    next_length = next_request < end_request ? request_length(p, next_request) : 0;
#if FMH_BATCH_INVARIANT
    next_offset = 0;
#endif
  }

  // Moves to the next fragment; false at the end of the part. `on_empty(request)` is called for
  // requests without a key, which have no fragment.
  template <typename OnEmpty>
  FMH_DEVICE bool next(const MlaParams& p, OnEmpty on_empty) {
    for (;;) {
      if (next_request >= end_request) return false;
      request = next_request;
      length = same(next_length);
      blocks = length_blocks(length);
      begin = request == same(range->first_request) ? same(range->first_block) : 0;
      end = request == same(range->last_request) ? same(range->last_block) : blocks;
#if FMH_BATCH_INVARIANT
      chunk = same(chunk_blocks(p, blocks));
      begin += same(next_offset);
      limit = end;
      end = min(begin + chunk, limit);
      next_offset = end < limit ? next_offset + chunk : 0;
      next_request = request + (next_offset == 0 ? step() : 0);
#else
      next_request = request + step();
#endif
      if (next_request < end_request) next_length = request_length(p, next_request);
      if (end > begin) return true;
      if (length == 0) on_empty(request);
    }
  }

#if FMH_LISTS
  FMH_DEVICE int step() const { return same(range->step); }
#else
  FMH_DEVICE static constexpr int step() { return 1; }
#endif

  FMH_DEVICE bool is_whole() const { return begin == 0 && end == blocks; }

  // Workspace slot of a fragment that is not the whole request.
  FMH_DEVICE int slot(const MlaParams& p, int part) const {
#if FMH_BATCH_INVARIANT
    return request * p.max_chunks + begin / chunk;
#else
#if FMH_LISTS
    part = range->part;
#endif
    return 2 * part + (begin == 0);  // a part holds at most one later and one first fragment
#endif
  }
};

}  // namespace fmh
