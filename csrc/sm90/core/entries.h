// Which entries of a request count: the first of a block table, or those of one or two lists.
#pragma once
#include "sm90/core/params.h"
#include "sm90/core/shape.h"

namespace fmh {

FMH_DEVICE int length_blocks(int length) { return (length + kBlockTokens - 1) / kBlockTokens; }

// Row of the batch and query token. `token` is that within the request, which only has one where it
// is a list's.
struct QueryToken {
  int row, token;

  FMH_DEVICE QueryToken(const MlaParams& p, int request, int token_of_request)
      : row(request), token(token_of_request) {
#if FMH_LISTS
    row = p.s_q == 1 ? request : small_quotient(request, p.s_q);
    token = request - row * p.s_q;
#endif
  }
};

#if FMH_LISTS

// Entries of list `which` of a row that count, valid or not.
FMH_DEVICE int list_entries(const MlaParams& p, int which, int row) {
  const int* counts = p.lists.counts[which];
  const int width = p.lists.width[which];
  return counts != nullptr ? min(max(counts[row], 0), width) : width;
}

// Whole blocks: the second list starts at a block's edge, and bits say which entries are valid.
FMH_DEVICE int request_length(const MlaParams& p, int request) {
  const int row = QueryToken(p, request, 0).row;
  int blocks = length_blocks(list_entries(p, 0, row));
  if (p.lists.width[1] > 0) blocks += length_blocks(list_entries(p, 1, row));
  return blocks * kBlockTokens;
}

#else

FMH_DEVICE int request_length(const MlaParams& p, int request) {
  return min(max(p.cache_seqlens[request], 0), p.capacity);
}

#endif  // FMH_LISTS

FMH_DEVICE int request_blocks(const MlaParams& p, int request) {
  return length_blocks(request_length(p, request));
}

}  // namespace fmh
