// Sparse decode over a cache of e4m3 with one scale for the tensor.
#define FMH_LISTS 1
#define FMH_FORMAT (FMH_D_QK == 576 ? 4 : 5)
#include "sm90/quantised/kernel.h"
