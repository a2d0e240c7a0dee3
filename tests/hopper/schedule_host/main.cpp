// The scalar part of the kernels' schedule, run on the host (FMH_LISTS 1: over lists whose counts are
// the lengths): cuts, their places, the walk, and what
// a part announces. The scans over threads and the choice of whole requests are not here.
//
// stdin: one case a line, "parts request_cost min_part_blocks capacity chunk_blocks batch
// lengths...". stdout: "case", then for each part "info request fragments", "empty request",
// "fragment request begin end slot" (slot -1: the whole request).
#define FMH_D_QK 576
#include <cstdio>
#include <vector>

#include "sm90/core/layout.h"
#include "sm90/core/walk.h"

using namespace fmh;

static char smem[kSharedBytes];

static void run(MlaParams& p) {
  std::vector<int> blocks(p.batch), before(p.batch);
  int total = 0;
  bool equal = true;
  for (int r = 0; r < p.batch; r++) {
    blocks[r] = request_blocks(p, r);
    before[r] = total;
    total += blocks[r] + request_overhead(p.request_cost, r, blocks[r]);
    equal = equal && blocks[r] == blocks[0];
  }
  puts("case");
  for (int part = 0; part < p.parts; part++) {
    ScheduleResult* result = shared_at<ScheduleResult>(smem, kOffsetSchedule);
    result->reset(part, p.batch);
#if FMH_LISTS
    result->part = part;
#endif
    Cuts cuts(1, 1);
    for (int r = 0; r < p.batch; r++) {
      CostLine line;
      line.begin = r;
      line.before = before[r];
      line.total = total;
      line.settle(p, equal, blocks[0]);
      cuts = Cuts(line.total, line.used);
      const int overhead = request_overhead(line.request_cost, r, blocks[r]);
      place_cut<0>(p, cuts, part, cuts.at(part), r, line.before, overhead, blocks[r], result);
      place_cut<1>(p, cuts, part + 1, cuts.at(part + 1), r, line.before, overhead, blocks[r],
                   result);
    }
    const bool starts_split =
        result->last_block > 0 &&
        (result->last_request > result->first_request || result->first_block == 0);
    printf("info %d %d\n", starts_split ? result->last_request : -1,
           starts_split ? cuts.last_before(result->last_cut_position) - part + 1 : 0);
    FragmentWalk<false> walk(smem, p);
    while (walk.next(p, [](int request) { printf("empty %d\n", request); })) {
      printf("fragment %d %d %d %d\n", walk.request, walk.begin, walk.end,
             walk.is_whole() ? -1 : walk.slot(p, part));
    }
  }
}

// Every part has its CTAs, and part 0 those that start the grid.
static bool spread_reaches_every_part() {
  for (int parts = 1; parts <= kMaxParts; parts++) {
    for (int used = 1; used <= parts; used++) {
      std::vector<int> seen(parts);
      int last = -1;
      for (int position = 0; position < parts; position++) {
        const int part = spread_part(position, used, parts);
        if (part < 0 || part >= parts || seen[part]++) return false;
        if (part < used && part != ++last) return false;  // used parts in order
      }
      if (last != used - 1 || spread_part(0, used, parts) != 0) return false;
    }
  }
  return true;
}

int main() {
  if (!spread_reaches_every_part()) return 2;
  MlaParams p;
  memset(&p, 0, sizeof p);
  p.max_chunks = kMaxChunks;
  while (scanf("%d %d %d %d %d %d", &p.parts, &p.request_cost, &p.min_part_blocks, &p.capacity,
               &p.chunk_blocks, &p.batch) == 6) {
    std::vector<int> lengths(p.batch);
    for (int& n : lengths)
      if (scanf("%d", &n) != 1) return 1;
    p.cache_seqlens = lengths.data();
    p.s_q = 1;
    p.lists.counts[0] = lengths.data();
    p.lists.width[0] = p.capacity;
    run(p);
  }
}
